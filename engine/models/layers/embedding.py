"""Token embedding and output layer, the two ends of a decoder, which often share one matrix.

On a CPU the output layer's weights are arranged for products, and the embedding can still look its
rows up in them, so a tied matrix is stored once.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.models.forward_context import NO_CONTEXT, ForwardContext, RowAdapters
from engine.models.layers.linear import Shard
from engine.models.layers.parallel import SINGLE, TensorParallel
from engine.models.layers.weight_slots import WeightOptions, WeightOwner, WeightSlot
from engine.quantization.method import LinearMethod, LinearPart, RowLookup, TensorSpec
from engine.quantization.plan import OUTPUT_LAYER


class TokenEmbedding(nn.Module, WeightOwner):
    """The embedding [V, C], whole on every rank, and unquantised for any checkpoint, since rows are
    looked up. A tied output layer may lend its rows.

    Args:
        scale: factor of looked-up rows, rounded to the weights' dtype.

    Attributes:
        is_tied: whether there is an output layer with the same matrix.
        weight: the matrix; absent while rows are lent.
    """

    weight: Tensor

    def __init__(self, vocab_size: int, hidden_size: int, *, scale: float = 1.0) -> None:
        super().__init__()
        self.shape = (vocab_size, hidden_size)
        self.is_tied = False
        self.scale = scale
        self.path = ""
        """The path in the model, set by `create_weights`."""
        self._options: WeightOptions
        self._loading: tuple[LinearMethod[Any], LinearPart]
        self._lent: RowLookup | None = None

    def forward(self, token_ids: Tensor, ctx: ForwardContext = NO_CONTEXT) -> Tensor:
        """Look up [T, C] for [T] int64, in new memory, with the changes of the rows' adapters.
        Rows that are states hold those instead."""
        lent = self._lent
        found = F.embedding(token_ids, self.weight) if lent is None else lent(token_ids)
        rows = self._scaled(found)
        if ctx.adapters is not None:
            ctx.adapters.add_looked_up(self.path, token_ids, rows)
            ctx.adapters.take_copies(self.path, rows, partial(self._look_up, token_ids))
        if ctx.states is not None:
            ctx.states.replace_in(rows)
        return rows

    def own_copy(self, tensor: Tensor) -> Tensor:
        """Convert an adapter's replacement of the weight to the form in which it is looked up."""
        return tensor.to(self._options.device, self._options.dtype)

    def _look_up(self, token_ids: Tensor, weight: Tensor) -> Tensor:
        return self._scaled(F.embedding(token_ids, weight))

    def _scaled(self, rows: Tensor) -> Tensor:
        return rows if self.scale == 1.0 else rows.mul_(self.scale)

    __call__ = forward

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        self.path, self._options = path, options
        self.scale = torch.tensor(self.scale).to(options.dtype).item()
        if self.is_tied and options.method_for(OUTPUT_LAYER).lends_rows(options.device.type):
            return {}
        self._loading = options.method_for(path), _part(path, self.shape, options)
        return _slots(*self._loading, self.shape[0])

    def process_weights_after_loading(self) -> None:
        if self._lent is None:
            method, part = self._loading
            self.weight = method.dequantised(part)

    def borrow(self, rows: RowLookup) -> None:
        """Look rows up in another layer from now on, and free the embedding's own."""
        self._lent = rows
        self.__dict__.pop("weight", None)


class LmHead(nn.Module, WeightOwner):
    """The output layer. A tied one uses the embedding's matrix, or lends its own.

    On a CPU that packs weights, a tied head packs the embedding's, because plain rows multiply at
    two thirds of the speed. A method for packed checkpoints takes the embedding's tensor from the
    checkpoint. Where it rounds weights, the embedding keeps its rows as they were.

    Ranks divide the tokens between them. A tied head, or a number of tokens that cannot be divided,
    stays whole on each.

    Args:
        soft_cap: c bends each logit x to c·tanh(x / c); None leaves them as they are.
        scale: factor of the logits.
    """

    def __init__(
        self,
        embedding: TokenEmbedding,
        *,
        tied: bool,
        soft_cap: float | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.shape = embedding.shape
        self._soft_cap = soft_cap
        self._scale = scale
        # Kept in a tuple so that the embedding does not become a submodule twice.
        self._tied: tuple[TokenEmbedding, ...] = (embedding,) if tied else ()
        embedding.is_tied = tied
        self.path = ""
        self.in_features = self.shape[1]
        self.shards: tuple[Shard, ...] = ()
        self._method: LinearMethod[Any]
        self._plain: LinearMethod[Any]
        self._part: LinearPart
        self._state: Any = None
        self._own = SINGLE

    def forward(self, hidden: Tensor, adapters: RowAdapters | None = None) -> Tensor:
        """Map [R, C] to fp32 logits [R, V], with the changes of the rows' adapters."""
        logits = self.in_fp32(hidden)
        if adapters is not None:
            adapters.add_to_logits(self.path, hidden, logits, self._plain.apply_in_fp32)
        if self._scale != 1.0:
            logits.mul_(self._scale)
        if self._soft_cap is not None:
            logits.div_(self._soft_cap).tanh_().mul_(self._soft_cap)
        return logits

    __call__ = forward

    @property
    def places(self) -> dict[str, slice]:
        """The outputs by path, as in `Linear`."""
        return {self.path: slice(0, self.shape[0])}

    @property
    def shard_paths(self) -> list[str]:
        """The paths of the shards, as in `Linear`."""
        return [self.path]

    def in_fp32(self, hidden: Tensor) -> Tensor:
        """Compute the product alone: [R, C] → [R, V] fp32."""
        return self._own.join(self._method.apply_in_fp32(self._state, hidden))

    def own_copy(self, tensor: Tensor) -> Any:
        """Convert an adapter's replacement of the weight to the arrangement of plain weights."""
        return self._plain.arrange(tensor.to(self._part.device, self._part.dtype))

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        self.path = path
        self.shards = (Shard(path.rpartition(".")[2], self.shape[0]),)
        self._plain = options.plain_method()
        self._method = options.method_for(path)
        is_divided = not self._tied and self.shape[0] % options.parallel.size == 0
        self._own = options.parallel if is_divided else SINGLE
        self._part = _part(path, self.shape, options, self._own)
        if self._arranges_embedding():
            return {}
        return _slots(self._method, self._part, self.shape[0], self._own)

    def part_from_embedding(self) -> None:
        """Separate the embedding, which needs its own weights, before weights are loaded."""
        for embedding in self._tied:
            embedding.is_tied = False

    def _arranges_embedding(self) -> bool:
        return bool(self._tied) and self._method.takes_plain_weights

    def process_weights_after_loading(self) -> None:
        if self._arranges_embedding():
            self._state = self._method.arrange(self._tied[0].weight)
        else:
            self._state = self._method.process(self._part)
        if self._tied and (rows := self._method.row_lookup(self._state, self._part.dtype)):
            self._tied[0].borrow(rows)


def _part(
    path: str, shape: tuple[int, int], options: WeightOptions, parallel: TensorParallel = SINGLE
) -> LinearPart:
    vocab_size, hidden_size = shape
    return LinearPart(
        names=(path,),
        in_features=hidden_size,
        out_features=(vocab_size // parallel.size,),
        has_bias=False,
        dtype=options.dtype,
        device=options.device,
    )


def _slots(
    method: LinearMethod[Any], part: LinearPart, vocab_size: int, parallel: TensorParallel = SINGLE
) -> dict[str, WeightSlot]:
    """The slots of all tensors that a method needs for one matrix, of which a rank takes its own
    rows."""
    specs = method.tensors(part.in_features, vocab_size, part.has_bias)

    def slot(kind: str, spec: TensorSpec) -> WeightSlot:
        def take(tensor: Tensor) -> None:
            axis, name = spec.out_axis, part.name(0, kind)
            part.take(0, kind, tensor if axis is None else parallel.cut(tensor, axis, name))

        return WeightSlot(spec, take)

    return {part.name(0, kind): slot(kind, spec) for kind, spec in specs.items()}
