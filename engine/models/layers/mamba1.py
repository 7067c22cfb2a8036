"""The mixer of Mamba 1: a state-space layer with a decay for each element of a channel's state.

Paper: Gu and Dao 2023, arXiv:2312.00752.
"""

import torch
from torch import Tensor, nn

from engine.models.forward_context import ForwardContext
from engine.models.layers.linear import Linear, Shard
from engine.models.layers.norm import RmsNorm
from engine.models.layers.short_conv import ShortConv
from engine.models.layers.weight_slots import WeightOptions, WeightOwner, WeightSlot, fp32_slots
from engine.models.recurrent_config import RecurrentConfig, RecurrentShapes
from kernels import selective_scan, silu_mul


class Mamba1(nn.Module, WeightOwner):
    """Projections, a short convolution, the selective scan and a gate. Attributes are named as in
    checkpoints of Mamba.

    Args:
        config: its shapes are those of `shapes`.
        layer: the layer's number.
        rank: the inputs of the projection to dt.
        bias, conv_bias: whether the outer projections and the convolution have biases.
        norm_eps: the epsilon of norms of dt's inputs, b and c, which some families have.
        learned_norms: whether these norms have weights.
    """

    a: Tensor
    d: Tensor
    dt_bias: Tensor

    def __init__(
        self,
        config: RecurrentConfig,
        layer: int,
        *,
        rank: int,
        bias: bool = False,
        conv_bias: bool = True,
        norm_eps: float | None = None,
        learned_norms: bool = True,
    ) -> None:
        super().__init__()
        inner, kept = config.shapes.inputs
        size, hidden = config.shapes.state[-1], config.hidden_size
        self._layer = layer
        self._sizes = [rank, size, size]
        self._shape = (inner, size)
        self.in_proj = Linear(hidden, (Shard("in_proj", 2 * inner),), bias=bias)
        self.conv1d = ShortConv(inner, kept + 1, bias=conv_bias)
        self.x_proj = Linear(inner, (Shard("x_proj", sum(self._sizes)),))
        self.dt_proj = Linear(rank, (Shard("dt_proj", inner),))
        self.out_proj = Linear(inner, (Shard("out_proj", hidden),), bias=bias)
        self.has_norms = norm_eps is not None
        if norm_eps is not None:
            self.dt_layernorm, self.b_layernorm, self.c_layernorm = (
                RmsNorm(part, norm_eps, learned=learned_norms) for part in self._sizes
            )
            for norm in (self.dt_layernorm, self.b_layernorm, self.c_layernorm):
                norm.takes_adapters = False

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """Map [T, C] to [T, C]."""
        assert ctx.recurrent is not None
        inputs, states = ctx.recurrent_states[self._layer]
        values, z = self.in_proj(x, ctx).chunk(2, 1)
        values = self.conv1d(values, inputs, ctx.recurrent)
        dt, b, c = torch.split(self.x_proj(values, ctx), self._sizes, 1)
        if self.has_norms:
            dt, b, c = self.dt_layernorm(dt), self.b_layernorm(b), self.c_layernorm(c)
        y = selective_scan(
            values,
            self.dt_proj(dt, ctx),
            b,
            c,
            states,
            ctx.recurrent,
            a=self.a,
            d=self.d,
            dt_bias=self.dt_bias,
        )
        return self.out_proj(silu_mul(z, y), ctx)

    __call__ = forward

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        # The scan adds dt's bias in fp32.
        channels = {"D": "d", "dt_proj.bias": "dt_bias"}
        return {
            **fp32_slots(self, path, {"A_log": "a"}, self._shape, options),
            **fp32_slots(self, path, channels, self._shape[:1], options),
        }

    def process_weights_after_loading(self) -> None:
        self.a = -self.a.exp()


def shapes(*, num_channels: int, state_size: int, width: int) -> RecurrentShapes:
    """What a layer with these channels and a convolution over `width` positions keeps of a text."""
    return RecurrentShapes((num_channels, width - 1), (num_channels, 1, state_size))
