"""Linear attention by the gated delta rule, around a state that all tokens of a text change.

Paper: Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464.
"""

import torch
from torch import Tensor, nn

from engine.models.forward_context import ForwardContext
from engine.models.layers.linear import Linear, Shard
from engine.models.layers.norm import RmsNorm
from engine.models.layers.short_conv import ShortConv
from engine.models.layers.weight_slots import WeightOptions, WeightOwner, WeightSlot, fp32_slots
from engine.models.recurrent_config import RecurrentConfig, RecurrentShapes
from kernels import gated_delta, silu_mul


class GatedDeltaNet(nn.Module, WeightOwner):
    """Projections, a short convolution, the delta rule and a gated norm. Attributes are named as in
    checkpoints of Qwen3.5.

    Args:
        layer: the layer's number.
    """

    a_log: Tensor
    dt_bias: Tensor

    def __init__(self, config: RecurrentConfig, layer: int, *, num_k_heads: int) -> None:
        super().__init__()
        num_channels, kept = config.shapes.inputs
        num_v_heads, _, v_dim = config.shapes.state
        values = num_v_heads * v_dim
        shards = (
            Shard("in_proj_qkv", num_channels),
            Shard("in_proj_z", values),
            Shard("in_proj_b", num_v_heads),
            Shard("in_proj_a", num_v_heads),
        )
        self.in_proj = Linear(config.hidden_size, shards)
        self.conv1d = ShortConv(num_channels, kept + 1)
        self.norm = RmsNorm(v_dim, config.rms_norm_eps)
        self.norm.takes_adapters = False
        self.out_proj = Linear(values, (Shard("out_proj", config.hidden_size),))
        self._layer = layer
        self._num_k_heads = num_k_heads
        self._sizes = [shard.out_features for shard in shards[:2]] + [2 * num_v_heads]
        self._v_dim = v_dim

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """Map [T, C] to [T, C]."""
        assert ctx.recurrent is not None
        inputs, states = ctx.recurrent_states[self._layer]
        qkv, z, gates = torch.split(self.in_proj(x, ctx), self._sizes, 1)
        mixed = gated_delta(
            self.conv1d(qkv, inputs, ctx.recurrent),
            gates,
            states,
            ctx.recurrent,
            a_log=self.a_log,
            dt_bias=self.dt_bias,
            num_k_heads=self._num_k_heads,
        )
        normed = self.norm(mixed.view(-1, self._v_dim)).view(len(x), -1)
        return self.out_proj(silu_mul(torch.cat((z, normed), 1)), ctx)

    __call__ = forward

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        names = {"A_log": "a_log", "dt_bias": "dt_bias"}
        return fp32_slots(self, path, names, (self._sizes[2] // 2,), options)


def shapes(
    *, num_k_heads: int, num_v_heads: int, k_dim: int, v_dim: int, width: int
) -> RecurrentShapes:
    """What a layer with these heads and a convolution over `width` positions keeps of a text."""
    num_channels = 2 * num_k_heads * k_dim + num_v_heads * v_dim
    return RecurrentShapes((num_channels, width - 1), (num_v_heads, k_dim, v_dim))
