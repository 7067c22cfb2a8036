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
        interleaved: whether the checkpoint has two projections, `in_proj_qkvz` and `in_proj_ba`,
            whose outputs are sorted by key head, as in Qwen3-Next.
        joins_gates: whether the checkpoint has `in_proj_b` and `in_proj_a` in one `in_proj_ba`.
        tiled: whether the inputs of `out_proj` have one value head of each key head in turn.
    """

    a_log: Tensor
    dt_bias: Tensor

    def __init__(
        self,
        config: RecurrentConfig,
        layer: int,
        *,
        num_k_heads: int,
        interleaved: bool = False,
        joins_gates: bool = False,
        tiled: bool = False,
    ) -> None:
        super().__init__()
        num_channels, kept = config.shapes.inputs
        num_v_heads, k_dim, v_dim = config.shapes.state
        values = num_v_heads * v_dim
        shards: tuple[Shard, ...] = (
            Shard("in_proj_qkv", num_channels),
            Shard("in_proj_z", values),
            Shard("in_proj_b", num_v_heads),
            Shard("in_proj_a", num_v_heads),
        )
        self._sizes = [shard.out_features for shard in shards[:2]] + [2 * num_v_heads]
        if joins_gates:
            shards = (*shards[:2], Shard("in_proj_ba", 2 * num_v_heads))
        self._per_k_head: list[list[int]] = []
        """For each interleaved projection, the sizes of what a key head has in it."""
        if interleaved:
            per_head = num_v_heads // num_k_heads
            of_values = per_head * v_dim
            self._per_k_head = [[k_dim, k_dim, of_values, of_values], [per_head, per_head]]
            shards = (
                Shard("in_proj_qkvz", num_channels + values),
                Shard("in_proj_ba", 2 * num_v_heads),
            )
        self.in_proj = Linear(config.hidden_size, shards)
        self.conv1d = ShortConv(num_channels, kept + 1)
        self.norm = RmsNorm(v_dim, config.rms_norm_eps)
        self.norm.takes_adapters = False
        self.out_proj = Linear(values, (Shard("out_proj", config.hidden_size),))
        self._layer = layer
        self._num_k_heads = num_k_heads
        self._v_dim = v_dim
        self._is_tiled = tiled

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """Map [T, C] to [T, C]."""
        assert ctx.recurrent is not None
        inputs, states = ctx.recurrent_states[self._layer]
        projected = self.in_proj(x, ctx)
        if self._per_k_head:
            projected = self._reordered(projected)
        qkv, z, gates = torch.split(projected, self._sizes, 1)
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
        found = silu_mul(z, normed)
        if self._is_tiled:
            by_k_head = found.view(len(x), self._num_k_heads, -1, self._v_dim)
            found = by_k_head.transpose(1, 2).flatten(1)
        return self.out_proj(found, ctx)

    __call__ = forward

    def _reordered(self, projected: Tensor) -> Tensor:
        """Bring outputs of interleaved projections into the order of separate ones."""
        heads = self._num_k_heads
        both = torch.split(projected, [heads * sum(sizes) for sizes in self._per_k_head], 1)
        parts = [
            part.flatten(1)
            for one, sizes in zip(both, self._per_k_head, strict=True)
            for part in torch.split(one.view(len(one), heads, -1), sizes, 2)
        ]
        return torch.cat(parts, 1)

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        names = {"A_log": "a_log", "dt_bias": "dt_bias"}
        return fp32_slots(self, path, names, (self._sizes[2] // 2,), options)


def shapes(
    *, num_k_heads: int, num_v_heads: int, k_dim: int, v_dim: int, width: int
) -> RecurrentShapes:
    """What a layer with these heads and a convolution over `width` positions keeps of a text."""
    num_channels = 2 * num_k_heads * k_dim + num_v_heads * v_dim
    return RecurrentShapes((num_channels, width - 1), (num_v_heads, k_dim, v_dim))
