"""Token ids in, logits out: the two ends of a decoder, which often share one matrix."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.models.layers.weight_slots import WeightOptions, WeightOwner, WeightSlot
from engine.quantization.method import LinearMethod, LinearPart


class TokenEmbedding(nn.Module, WeightOwner):
    """[V, C]; on every rank whole, and plain whatever the checkpoint has: rows are looked up.

    Args:
        scale: factor of what is looked up, rounded to the weights' dtype.
    """

    weight: Tensor

    def __init__(self, vocab_size: int, hidden_size: int, *, scale: float = 1.0) -> None:
        super().__init__()
        self.shape = (vocab_size, hidden_size)
        self._scale = scale
        self._loading: tuple[LinearMethod[Any], LinearPart]

    def forward(self, token_ids: Tensor) -> Tensor:
        """[T] int64 → [T, C], new memory."""
        rows = F.embedding(token_ids, self.weight)
        return rows if self._scale == 1.0 else rows.mul_(self._scale)

    __call__ = forward

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        self._scale = torch.tensor(self._scale).to(options.dtype).item()
        self._loading = options.method_for(path), _part(path, self.shape, options)
        return _slots(*self._loading)

    def process_weights_after_loading(self) -> None:
        method, part = self._loading
        self.weight = method.dequantised(part)


class LmHead(nn.Module, WeightOwner):
    """The output layer. A tied one uses the embedding's matrix.

    On a CPU that packs weights, a tied head keeps its own packed copy beside the embedding: a
    lookup needs plain rows, and plain rows multiply at two thirds of the speed. A method whose
    weights come packed asks the checkpoint for them a second time.

    Args:
        soft_cap: c bends each logit x to c·tanh(x / c); None leaves them as they are.
    """

    def __init__(
        self, embedding: TokenEmbedding, *, tied: bool, soft_cap: float | None = None
    ) -> None:
        super().__init__()
        self.shape = embedding.shape
        self._soft_cap = soft_cap
        # In a tuple so that the embedding does not become a submodule twice.
        self._tied: tuple[TokenEmbedding, ...] = (embedding,) if tied else ()
        self._method: LinearMethod[Any]
        self._part: LinearPart
        self._state: Any = None

    def forward(self, hidden: Tensor) -> Tensor:
        """[R, C] → [R, V], logits in fp32."""
        logits = self._method.apply_in_fp32(self._state, hidden)
        if self._soft_cap is not None:
            logits.div_(self._soft_cap).tanh_().mul_(self._soft_cap)
        return logits

    __call__ = forward

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        self._method = options.method_for(path)
        self._part = _part(path, self.shape, options)
        return {} if self._arranges_embedding() else _slots(self._method, self._part)

    def _arranges_embedding(self) -> bool:
        return bool(self._tied) and self._method.takes_plain_weights

    def process_weights_after_loading(self) -> None:
        if self._arranges_embedding():
            self._state = self._method.arrange(self._tied[0].weight)
        else:
            self._state = self._method.process(self._part)


def _part(path: str, shape: tuple[int, int], options: WeightOptions) -> LinearPart:
    vocab_size, hidden_size = shape
    return LinearPart(
        names=(path,),
        in_features=hidden_size,
        out_features=(vocab_size,),
        has_bias=False,
        dtype=options.dtype,
        device=options.device,
    )


def _slots(method: LinearMethod[Any], part: LinearPart) -> dict[str, WeightSlot]:
    """Of all tensors that a method needs of one matrix."""
    specs = method.tensors(part.in_features, part.out_features[0], part.has_bias)

    def slot(kind: str) -> WeightSlot:
        return WeightSlot(specs[kind], lambda tensor: part.take(0, kind, tensor))

    return {part.name(0, kind): slot(kind) for kind in specs}
