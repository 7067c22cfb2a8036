"""The MLP of decoders, which is gated in Llama and most of its descendants."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from engine.errors import UnsupportedArchitecture
from engine.models.forward_context import ForwardContext
from engine.models.layers.activation import activation_named
from engine.models.layers.linear import Linear, Shard, fused_shard
from kernels import gelu_mul, silu_mul

_GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu_mul,
    "swish": silu_mul,
    "gelu_pytorch_tanh": gelu_mul,
    "gelu_tanh": gelu_mul,
}
"""The product of activated gate and up projection, by Hugging Face's `hidden_act`."""


class MlpNames(NamedTuple):
    """The checkpoint's names for the layers of an MLP."""

    gate: str | None
    """None for an MLP without gates."""
    up: str
    down: str
    fused: str = "gate_up_proj"
    """The layer of gate and up in one tensor."""


MLP_NAMES = MlpNames("gate_proj", "up_proj", "down_proj")


class GatedMlp(nn.Module):
    """An MLP that computes `down(act(gate(x)) * up(x))`, or `down(act(up(x)))` without gates.

    Args:
        hidden, inner: sizes of the inputs and outputs, and of the activations between.
        act: the activation, by Hugging Face's name.
        fused: whether the checkpoint has gate and up in one tensor.
        names: the names of the layers.

    Raises:
        UnsupportedArchitecture: the activation is unknown.
    """

    def __init__(
        self,
        hidden: int,
        inner: int,
        act: str,
        *,
        bias: bool = False,
        fused: bool = False,
        names: MlpNames = MLP_NAMES,
    ) -> None:
        super().__init__()
        self.gate: Callable[[Tensor], Tensor]
        """The activation: with gates [T, 2·I] → [T, I], otherwise [T, I] → [T, I]."""
        if names.gate is None:
            shards = [Shard(names.up, inner)]
            self.gate = activation_named(act)
        elif act in _GATES:
            shards = [Shard(names.gate, inner), Shard(names.up, inner)]
            self.gate = _GATES[act]
        else:
            raise UnsupportedArchitecture(
                f"hidden_act {act!r} is not supported; it must be one of {', '.join(_GATES)}"
            )
        self.gate_up_proj = Linear(
            hidden,
            (fused_shard(names.fused, shards),) if fused else shards,
            bias=bias,
            partition="outputs",
        )
        self.down_proj = Linear(inner, (Shard(names.down, hidden),), bias=bias, partition="inputs")

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """Map [T, C] to [T, C]."""
        return self.down_proj(self.gate(self.gate_up_proj(x, ctx)), ctx)

    __call__ = forward
