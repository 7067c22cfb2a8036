"""The gated MLP that Llama and most of its descendants use."""

from torch import Tensor, nn

from engine.errors import UnsupportedArchitecture
from engine.models.config import ModelConfig
from engine.models.forward_context import ForwardContext
from engine.models.layers.linear import Linear, Shard
from kernels import silu_mul


class GatedMlp(nn.Module):
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(self, config: ModelConfig, *, bias: bool = False) -> None:
        super().__init__()
        if config.hidden_act not in ("silu", "swish"):
            raise UnsupportedArchitecture(
                f"{config.architecture} with hidden_act {config.hidden_act!r} is not supported; "
                f"supported is silu"
            )
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_up_proj = Linear(
            hidden,
            (Shard("gate_proj", inner), Shard("up_proj", inner)),
            bias=bias,
            partition="outputs",
        )
        self.down_proj = Linear(inner, (Shard("down_proj", hidden),), bias=bias, partition="inputs")

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """[T, C] → [T, C]."""
        return self.down_proj(silu_mul(self.gate_up_proj(x, ctx)), ctx)

    __call__ = forward
