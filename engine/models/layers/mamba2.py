"""The mixer of Mamba 2: a state-space layer with one decay per head.

Paper: Dao and Gu 2024, arXiv:2405.21060.
"""

from math import inf
from typing import Literal

import torch
from torch import Tensor, nn

from engine.models.forward_context import ForwardContext
from engine.models.layers.linear import Linear, Shard
from engine.models.layers.norm import GroupedRmsNorm
from engine.models.layers.short_conv import ShortConv
from engine.models.layers.weight_slots import WeightOptions, WeightOwner, WeightSlot, fp32_slots
from engine.models.recurrent_config import RecurrentConfig, RecurrentShapes
from kernels import selective_scan, silu_mul

NormPlace = Literal["after_gate", "before_gate", "none"]
"""Whether the scan's result is normalised, and whether it is multiplied by the gate before that."""


class Mamba2(nn.Module, WeightOwner):
    """A projection, a short convolution, the selective scan, a gate and a norm. Attributes are
    named as in checkpoints of Mamba 2.

    Args:
        config: its shapes are those of `shapes`.
        layer: the layer's number.
        norm: the place of the norm, which has the groups of b and c.
        bias, out_bias, conv_bias: whether the projections and the convolution have biases.
        dt_limits: see `kernels.selective_scan`.
        multipliers: the factors of the projected gate, x, b, c and dt.
    """

    a: Tensor
    d: Tensor
    dt_bias: Tensor
    _factors: Tensor

    def __init__(
        self,
        config: RecurrentConfig,
        layer: int,
        *,
        norm: NormPlace = "after_gate",
        bias: bool = False,
        out_bias: bool = False,
        conv_bias: bool = True,
        dt_limits: tuple[float, float] = (0.0, inf),
        multipliers: tuple[float, float, float, float, float] | None = None,
    ) -> None:
        super().__init__()
        num_channels, kept = config.shapes.inputs
        num_heads, head_dim, size = config.shapes.state
        inner = num_heads * head_dim
        groups = (num_channels - inner) // 2
        self._sizes = [inner, num_channels, num_heads]
        self._mixed_sizes = [inner, groups, groups]
        hidden = config.hidden_size
        self.in_proj = Linear(hidden, (Shard("in_proj", sum(self._sizes)),), bias=bias)
        self.conv1d = ShortConv(num_channels, kept + 1, bias=conv_bias)
        self.norm: GroupedRmsNorm | None = None
        if norm != "none":
            self.norm = GroupedRmsNorm(inner, config.rms_norm_eps, groups // size)
            self.norm.takes_adapters = False
        self.out_proj = Linear(inner, (Shard("out_proj", hidden),), bias=out_bias)
        self._layer = layer
        self._norm_place = norm
        self._dt_limits = dt_limits
        self._multipliers = multipliers

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """Map [T, C] to [T, C]."""
        assert ctx.recurrent is not None
        inputs, states = ctx.recurrent_states[self._layer]
        projected = self.in_proj(x, ctx)
        if self._multipliers is not None:
            projected *= self._factors
        z, mixed, dt = torch.split(projected, self._sizes, 1)
        mixed = self.conv1d(mixed, inputs, ctx.recurrent)
        values, b, c = torch.split(mixed, self._mixed_sizes, 1)
        y = selective_scan(
            values,
            dt,
            b,
            c,
            states,
            ctx.recurrent,
            a=self.a,
            d=self.d,
            dt_bias=self.dt_bias,
            dt_limits=self._dt_limits,
        )
        if self.norm is not None and self._norm_place == "before_gate":
            y = self.norm(y)
        y = silu_mul(z, y)
        if self.norm is not None and self._norm_place == "after_gate":
            y = self.norm(y)
        return self.out_proj(y, ctx)

    __call__ = forward

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        if self._multipliers is not None:
            inner, groups, _ = self._mixed_sizes
            sizes = torch.tensor((inner, inner, groups, groups, self._sizes[2]))
            factors = torch.tensor(self._multipliers, dtype=options.dtype)
            self._factors = factors.repeat_interleave(sizes).to(options.device)
        names = {"A_log": "a", "D": "d", "dt_bias": "dt_bias"}
        return fp32_slots(self, path, names, (self._sizes[2],), options)

    def process_weights_after_loading(self) -> None:
        self.a = -self.a.exp()


def shapes(
    *, num_heads: int, head_dim: int, state_size: int, num_groups: int, width: int
) -> RecurrentShapes:
    """What a layer with these heads and a convolution over `width` positions keeps of a text."""
    num_channels = num_heads * head_dim + 2 * num_groups * state_size
    return RecurrentShapes((num_channels, width - 1), (num_heads, head_dim, state_size))
