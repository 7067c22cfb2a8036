"""Our layers in place of transformers', with packed weights and bits independent of other rows."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import activations
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

from engine.errors import ModelLoadError
from engine.models.fallback.step import current_context
from engine.models.forward_context import NO_CONTEXT, ForwardContext, RowAdapters
from engine.models.layers.activation import gelu, gelu_tanh, silu
from engine.models.layers.embedding import LmHead, TokenEmbedding
from engine.models.layers.experts import Experts
from engine.models.layers.linear import Linear, Shard
from engine.models.layers.weight_slots import WeightOptions, WeightOwner, WeightSlot
from engine.quantization.method import RowLookup, TensorSpec
from engine.quantization.plain import UnquantizedMethod
from kernels import Routing


class FallbackLinear(Linear):
    """The replacement of `nn.Linear`.

    Args:
        name: the last part of the layer's path.
    """

    def __init__(self, name: str, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__(in_features, (Shard(name, out_features),), bias=bias)
        self._options: WeightOptions
        self._weight: Tensor | None = None

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        self._options = options
        return super().create_weights(path, options)

    @property
    def weight(self) -> Tensor:
        """A copy of the weight, for code that multiplies with it itself, as some routers' does."""
        if self.bias:
            raise AttributeError("weight")
        if self._weight is None:
            options = self._options
            one = torch.eye(self.in_features, dtype=options.dtype, device=options.device)
            self._weight = super().forward(one, NO_CONTEXT).T.contiguous()
        return self._weight

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        """Map [..., in] to [..., out]."""
        rows = super().forward(x.reshape(-1, self.in_features), ctx or current_context())
        return rows.view(*x.shape[:-1], rows.shape[-1])

    __call__ = forward


class TransposedLinear(FallbackLinear):
    """The replacement of transformers' `Conv1D`, whose weight is [in, out] in checkpoints."""

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        """Name the layer's tensors.

        Raises:
            ModelLoadError: weights are to be quantised, which was planned for the other shape.
        """
        if not isinstance(options.method_for(path), UnquantizedMethod):
            raise ModelLoadError(
                f"{path} stores its weight transposed, which cannot be quantised; set quantization "
                f"to none"
            )
        slots = super().create_weights(path, options)
        weight = slots[f"{path}.weight"]
        spec = TensorSpec(shape=tuple(reversed(weight.spec.shape)))
        return slots | {f"{path}.weight": WeightSlot(spec, lambda tensor: weight.load(tensor.T))}


class BiasedHead(FallbackLinear):
    """An output layer with a bias, with fp32 logits."""

    takes_adapters = False

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        """Map [..., in] to [..., out] in fp32."""
        rows = self.in_fp32(x.reshape(-1, self.in_features))
        return rows.view(*x.shape[:-1], rows.shape[-1])

    __call__ = forward


class Head(LmHead):
    """An output layer without a bias, with fp32 logits."""

    @property
    def weight(self) -> Tensor:
        """A tensor without numbers, as some models' code asks for its dtype."""
        return torch.empty(0, dtype=self._dtype)

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        self._dtype = options.dtype
        return super().create_weights(path, options)

    def forward(self, hidden: Tensor, adapters: RowAdapters | None = None) -> Tensor:
        """Map [..., C] to [..., V] in fp32."""
        logits = super().forward(hidden.reshape(-1, hidden.shape[-1]))
        return logits.view(*hidden.shape[:-1], logits.shape[-1])

    __call__ = forward


class TiedHeadWithBias(Head):
    """An output layer that shares the token embeddings and has a bias."""

    def __init__(self, embedding: TokenEmbedding) -> None:
        super().__init__(embedding, tied=True)
        self.own_bias = _Bias(self.shape[0])

    def forward(self, hidden: Tensor, adapters: RowAdapters | None = None) -> Tensor:
        return super().forward(hidden) + self.own_bias.numbers

    __call__ = forward


class _Bias(nn.Module, WeightOwner):
    """The bias [V] of the layer that it is a part of, in fp32. It is loaded on its own, since the
    layer waits for the embeddings."""

    numbers: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        def load(bias: Tensor) -> None:
            self.numbers = bias.to(device=options.device, dtype=torch.float32, copy=True)

        slot = WeightSlot(TensorSpec(shape=(self._size,)), load)
        return {f"{path.rpartition('.')[0]}.bias": slot}


class OwnEmbedding(TokenEmbedding):
    """An embedding that keeps its own rows, because the model's code may read them."""

    def borrow(self, rows: RowLookup) -> None:
        """Do nothing."""


class KeptEmbedding(OwnEmbedding):
    """The model's own kind of embedding, such as one that scales, in the form an output layer
    needs."""

    def __init__(self, module: nn.Embedding) -> None:
        super().__init__(module.num_embeddings, module.embedding_dim)
        # Kept in a tuple so that it does not become a submodule twice.
        self._module = (module,)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight [V, C], once it is loaded."""
        return self._module[0].weight


class Activation(nn.Module):
    """A module for one of the functions of `engine.models.layers.activation`."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., I] to [..., I]."""
        return self._function(x.reshape(-1, x.shape[-1])).view(x.shape)


class RotaryTable(nn.Module):
    """A rotary module's outputs by position, computed once and looked up.

    The bits of a cosine depend on its place in a vector, so cosines are not computed step by step.
    The table grows by pieces of a fixed size, so a position's numbers do not depend on when it was
    first needed.
    """

    PIECE = 1024

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module
        self._tables: dict[Any, tuple[Tensor, ...]] = {}

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the module, as some models read them."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("_module"), name)

    def forward(self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the module's own result for position ids [1, T], or [A, 1, T] with equal axes."""
        *axes, num_rows = position_ids.shape
        rows = position_ids.reshape(-1, num_rows)[0]
        key = (x.dtype, args, tuple(sorted(kwargs.items())))
        longest = current_context().longest_context
        table = self._tables.get(key, ())
        while not table or len(table[0]) < longest:
            start = len(table[0]) if table else 0
            piece = self._piece(start, axes, x, args, kwargs)
            table = tuple(map(torch.cat, zip(table, piece, strict=True))) if table else piece
            self._tables[key] = table
        found = tuple(part[rows].movedim(0, -2) for part in table)
        return found if len(found) > 1 else found[0]

    def _piece(
        self, start: int, axes: list[int], x: Tensor, args: Any, kwargs: Any
    ) -> tuple[Tensor, ...]:
        """Compute a piece of the table, each tensor [PIECE, ...]."""
        positions = torch.arange(start, start + self.PIECE, device=x.device).expand(*axes, -1)
        values = self._module(x[:, :1], positions, *args, **kwargs)
        parts = values if isinstance(values, tuple) else (values,)
        return tuple(part.movedim(-2, 0) for part in parts)

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        """Whether a module looks like those that transformers' models share."""
        if not type(module).__name__.endswith("RotaryEmbedding") or [*module.parameters()]:
            return False
        return list(inspect.signature(module.forward).parameters)[:2] == ["x", "position_ids"]


class FallbackExperts(Experts):
    """The replacement of a mixture's experts, which checkpoints store one by one."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Map [..., C], with k experts and their weights for each of its T rows, to [..., C]."""
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        choice, weights = (one.reshape(len(rows), -1) for one in (top_k_index, top_k_weights))
        routing = Routing.of(choice, weights.float(), len(self))
        return self.mix(rows, routing, current_context()).view_as(hidden_states)

    @classmethod
    def replacing(cls, module: Any) -> "FallbackExperts":
        """Create the replacement of a module of transformers that has an `activation_of`."""
        num_experts, hidden, inner = module.down_proj.shape
        return cls(num_experts, hidden, inner, cls.activation_of(module) or "")

    @staticmethod
    def activation_of(module: Any) -> str | None:
        """Return the activation of transformers' experts if these compute the same as ours; None
        otherwise."""
        gate = getattr(type(module), "_apply_gate", None)
        if getattr(gate, "__name__", "") != "_default_apply_gate":
            return None
        if module.has_bias or module.is_transposed or not module.has_gate:
            return None
        function = _activation(module.act_fn) if module.is_concatenated else None
        return {silu: "silu", gelu_tanh: "gelu_pytorch_tanh"}.get(function)  # type: ignore[arg-type]


_ACTIVATIONS: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.SiLU: silu,
    activations.SiLUActivation: silu,
    activations.GELUActivation: gelu,
    activations.GELUTanh: gelu_tanh,
    activations.NewGELUActivation: gelu_tanh,
    activations.FastGELUActivation: gelu_tanh,
}


def replacement(path: str, module: Any) -> nn.Module | None:
    """Return our replacement of a module that one of our layers can compute; None keeps the
    module."""
    name = path.rpartition(".")[2]
    if type(module) in (nn.Linear, FalconLinear):
        has_bias = module.bias is not None
        return FallbackLinear(name, module.in_features, module.out_features, bias=has_bias)
    if type(module) is Conv1D:
        return TransposedLinear(name, module.nx, module.nf, bias=True)
    if (function := _activation(module)) is not None:
        return Activation(function)
    return RotaryTable(module) if RotaryTable.fits(module) else None


def _activation(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    if type(module) is nn.GELU:
        return gelu if module.approximate == "none" else gelu_tanh
    return _ACTIVATIONS.get(type(module))


def replacement_for_head(head: Any, embedding: TokenEmbedding, *, tied: bool) -> nn.Module:
    """Return our replacement of the output layer; one that computes more stays as it is.

    Raises:
        ModelLoadError: the layer is of an unsupported kind.
    """
    has_bias = getattr(head, "bias", None) is not None
    if isinstance(head, nn.Linear) and type(head) is not nn.Linear and not tied:
        return head
    if type(head) is not nn.Linear:
        raise ModelLoadError(
            "the model's output layer is not supported: it does more than multiply with a matrix "
            "and add a bias"
        )
    if has_bias and tied:
        return TiedHeadWithBias(embedding)
    if has_bias:
        return BiasedHead("lm_head", head.in_features, head.out_features, bias=True)
    if not tied:
        embedding = TokenEmbedding(head.out_features, head.in_features)
    return Head(embedding, tied=tied)
