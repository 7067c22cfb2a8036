"""Our layers in the places of transformers': packed weights, and bits that no neighbour changes."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import activations
from transformers.pytorch_utils import Conv1D

from engine.errors import ModelLoadError
from engine.models.fallback.step import current_context
from engine.models.forward_context import ForwardContext, RowAdapters
from engine.models.layers.activation import gelu, gelu_tanh, silu
from engine.models.layers.embedding import LmHead, TokenEmbedding
from engine.models.layers.experts import Experts
from engine.models.layers.linear import Linear, Shard
from engine.models.layers.weight_slots import WeightOptions, WeightSlot
from engine.quantization.method import RowLookup, TensorSpec
from engine.quantization.plain import UnquantizedMethod
from kernels import Routing


class FallbackLinear(Linear):
    """In the place of `nn.Linear`.

    Args:
        name: the last part of its path.
    """

    def __init__(self, name: str, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__(in_features, (Shard(name, out_features),), bias=bias)

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        """[..., in] → [..., out]."""
        rows = super().forward(x.reshape(-1, self.in_features), ctx or current_context())
        return rows.view(*x.shape[:-1], rows.shape[-1])

    __call__ = forward


class TransposedLinear(FallbackLinear):
    """In the place of transformers' `Conv1D`, whose weight is [in, out] in checkpoints."""

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        """
        Raises:
            ModelLoadError: weights are to be quantised, which was planned for the other shape.
        """
        if not isinstance(options.method_for(path), UnquantizedMethod):
            raise ModelLoadError(
                f"{path} has its weight transposed and cannot be quantised; set quantization to "
                f"none"
            )
        slots = super().create_weights(path, options)
        weight = slots[f"{path}.weight"]
        spec = TensorSpec(shape=tuple(reversed(weight.spec.shape)))
        return slots | {f"{path}.weight": WeightSlot(spec, lambda tensor: weight.load(tensor.T))}


class BiasedHead(FallbackLinear):
    """An output layer with a bias: logits in fp32."""

    takes_adapters = False

    def forward(self, x: Tensor, ctx: ForwardContext | None = None) -> Tensor:
        """[..., in] → [..., out] fp32."""
        rows = self.in_fp32(x.reshape(-1, self.in_features))
        return rows.view(*x.shape[:-1], rows.shape[-1])

    __call__ = forward


class Head(LmHead):
    """An output layer without a bias: logits in fp32."""

    def forward(self, hidden: Tensor, adapters: RowAdapters | None = None) -> Tensor:
        """[..., C] → [..., V] fp32."""
        logits = super().forward(hidden.reshape(-1, hidden.shape[-1]))
        return logits.view(*hidden.shape[:-1], logits.shape[-1])

    __call__ = forward


class OwnEmbedding(TokenEmbedding):
    """Has its rows for itself: the model's code may look at them."""

    def borrow(self, rows: RowLookup) -> None:
        """Nothing."""


class KeptEmbedding(OwnEmbedding):
    """An embedding of the model's own kind, such as one that scales, as an output layer sees it."""

    def __init__(self, module: nn.Embedding) -> None:
        super().__init__(module.num_embeddings, module.embedding_dim)
        # In a tuple so that it does not become a submodule twice.
        self._module = (module,)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """[V, C], once it is loaded."""
        return self._module[0].weight


class Activation(nn.Module):
    """One of `engine.models.layers.activation` as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] → [..., I]."""
        return self._function(x.reshape(-1, x.shape[-1])).view(x.shape)


class RotaryTable(nn.Module):
    """What a rotary module gives for each position, computed once and looked up.

    Cosines of a step's positions would differ by their places in the vector. The table grows by
    pieces of a fixed size, so a position's numbers do not depend on when it was first needed.
    """

    PIECE = 1024

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module
        self._tables: dict[Any, tuple[Tensor, ...]] = {}

    def forward(self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As the module's own, for position ids [1, T]."""
        key = (x.dtype, args, tuple(sorted(kwargs.items())))
        longest = current_context().longest_context
        table = self._tables.get(key, ())
        while not table or len(table[0]) < longest:
            start = len(table[0]) if table else 0
            piece = self._piece(start, x, args, kwargs)
            table = tuple(map(torch.cat, zip(table, piece, strict=True))) if table else piece
            self._tables[key] = table
        found = tuple(part[position_ids[0]][None] for part in table)
        return found if len(found) > 1 else found[0]

    def _piece(self, start: int, x: Tensor, args: Any, kwargs: Any) -> tuple[Tensor, ...]:
        """Each [PIECE, ...]."""
        positions = torch.arange(start, start + self.PIECE, device=x.device)[None]
        values = self._module(x[:, :1], positions, *args, **kwargs)
        return tuple(part[0] for part in (values if isinstance(values, tuple) else (values,)))

    @classmethod
    def fits(cls, module: nn.Module) -> bool:
        """Whether a module looks like those that transformers' models share."""
        if not type(module).__name__.endswith("RotaryEmbedding"):
            return False
        return list(inspect.signature(module.forward).parameters)[:2] == ["x", "position_ids"]


class FallbackExperts(Experts):
    """In the place of a mixture's experts, which checkpoints have one by one."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """[..., C], and for each of its T rows k experts and their weights → [..., C]."""
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        choice, weights = (one.reshape(len(rows), -1) for one in (top_k_index, top_k_weights))
        routing = Routing.of(choice, weights.float(), len(self))
        return self.mix(rows, routing, current_context()).view_as(hidden_states)

    @classmethod
    def replacing(cls, module: Any) -> "FallbackExperts":
        """Those of a module of transformers that has an `activation_of`."""
        num_experts, hidden, inner = module.down_proj.shape
        return cls(num_experts, hidden, inner, cls.activation_of(module) or "")

    @staticmethod
    def activation_of(module: Any) -> str | None:
        """Of transformers' experts, if these compute the same; None: they, or it, are others."""
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
    """Ours for a module that computes what one of ours does; None: it stays."""
    name = path.rpartition(".")[2]
    if type(module) is nn.Linear:
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
    """Ours for the output layer.

    Raises:
        ModelLoadError: it is none of the kinds that there are.
    """
    has_bias = getattr(head, "bias", None) is not None
    if type(head) is not nn.Linear or (tied and has_bias):
        raise ModelLoadError("the model's output layer is of an unusual kind")
    if has_bias:
        return BiasedHead("lm_head", head.in_features, head.out_features, bias=True)
    if not tied:
        embedding = TokenEmbedding(head.out_features, head.in_features)
    return Head(embedding, tied=tied)
