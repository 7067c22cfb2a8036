"""Kimi Linear: most layers keep a state by a delta rule with a decay for each row of it, the others
attend without rotation to keys and values that come from a narrow latent.

Paper: Kimi Team 2025, arXiv:2510.26692.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.decoder import Decoder, DecoderLayer, mlp_of
from engine.models.deepseek import latent_fields
from engine.models.experts_config import (
    MAX_EXPERTS,
    ExpertsConfig,
    expert_groups,
    first_plain_layers,
)
from engine.models.family import Family
from engine.models.forward_context import ForwardContext
from engine.models.json_keys import FULL
from engine.models.layers.experts import Scores, SharedExpert
from engine.models.layers.latent_attention import LatentAttention, LatentShape
from engine.models.layers.linear import Linear, Shard
from engine.models.layers.norm import RmsNorm
from engine.models.layers.rotary import Rope, Rotation
from engine.models.layers.short_conv import ShortConv
from engine.models.layers.weight_slots import WeightOptions, WeightOwner, WeightSlot, fp32_slots
from engine.models.metadata_keys import MetadataKeys
from engine.models.recurrent_config import RecurrentConfig, RecurrentShapes
from engine.quantization.method import TensorSpec
from kernels import gated_delta, sigmoid_mul

ARCHITECTURE = "KimiLinearForCausalLM"
LINEAR = "linear_attention"
_RENAMED = {
    ".block_sparse_moe.": ".mlp.",
    ".w1.": ".gate_proj.",
    ".w3.": ".up_proj.",
    ".w2.": ".down_proj.",
}
"""Parts of names in checkpoints, and the model's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KimiConfig(ExpertsConfig, RecurrentConfig):
    """Kimi Linear's configuration. Heads have the size of those that attend."""

    latent: LatentShape

    def tensor_name(self, name: str) -> str:
        """See `ModelConfig.tensor_name`."""
        for stored, own in _RENAMED.items():
            name = name.replace(stored, own)
        return RecurrentConfig.tensor_name(self, name)


class JointConv(ShortConv):
    """The convolutions of queries, keys and values, which checkpoints have apart."""

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        num_channels, width = self._shape
        self.weight = torch.empty(self._shape, dtype=torch.float32, device=options.device)
        spec = TensorSpec(shape=(num_channels // 3, 1, width))
        neighbours = path.rpartition(".")[0]
        return {
            f"{neighbours}.{name}_conv1d.weight": WeightSlot(spec, partial(self._fill_part, part))
            for part, name in zip(self.weight.chunk(3), "qkv", strict=True)
        }

    @staticmethod
    def _fill_part(part: Tensor, tensor: Tensor) -> None:
        part.copy_(tensor[:, 0])


class DeltaAttention(nn.Module, WeightOwner):
    """Projections, a short convolution, the delta rule and a gated norm. Two narrow layers make the
    decays, and two others the gate."""

    a_log: Tensor
    dt_bias: Tensor

    def __init__(self, config: KimiConfig, layer: int) -> None:
        super().__init__()
        hidden, (num_channels, kept) = config.hidden_size, config.shapes.inputs
        self._num_heads, _, dim = config.shapes.state
        inner = self._num_heads * dim
        sizes = {"q_proj": inner, "k_proj": inner, "v_proj": inner}
        sizes |= {"b_proj": self._num_heads, "f_a_proj": dim, "g_a_proj": dim}
        self.in_proj = Linear(hidden, [Shard(name, size) for name, size in sizes.items()])
        self.conv1d = JointConv(num_channels, kept + 1)
        self.f_b_proj = Linear(dim, (Shard("f_b_proj", inner),))
        self.g_b_proj = Linear(dim, (Shard("g_b_proj", inner),))
        self.o_norm = RmsNorm(dim, config.rms_norm_eps)
        self.o_norm.takes_adapters = False
        self.o_proj = Linear(inner, (Shard("o_proj", hidden),))
        self._layer = layer
        self._sizes = [num_channels, self._num_heads, dim, dim]

    def forward(self, x: Tensor, rotation: Rotation, ctx: ForwardContext) -> Tensor:
        """Map [T, C] to [T, C]."""
        assert ctx.recurrent is not None
        inputs, states = ctx.recurrent_states[self._layer]
        qkv, b, decays, gate = torch.split(self.in_proj(x, ctx), self._sizes, 1)
        mixed = gated_delta(
            self.conv1d(qkv, inputs, ctx.recurrent),
            torch.cat((b, self.f_b_proj(decays.contiguous(), ctx)), 1),
            states,
            ctx.recurrent,
            a_log=self.a_log,
            dt_bias=self.dt_bias,
            num_k_heads=self._num_heads,
        )
        normed = self.o_norm(mixed.view(-1, self.o_norm.size)).view(len(x), -1)
        gate = self.g_b_proj(gate.contiguous(), ctx)
        return self.o_proj(sigmoid_mul(gate, normed), ctx)

    __call__ = forward

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        heads, dim = self._num_heads, self.o_norm.size
        return {
            **fp32_slots(self, path, {"A_log": "a_log"}, (1, 1, heads, 1), options),
            **fp32_slots(self, path, {"dt_bias": "dt_bias"}, (heads * dim,), options),
        }

    def process_weights_after_loading(self) -> None:
        self.a_log = self.a_log.flatten()


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    assert isinstance(config, KimiConfig)

    def create_layer(layer: int) -> DecoderLayer:
        mixer: DeltaAttention | LatentAttention
        if layer in config.recurrent_layers:
            mixer = DeltaAttention(config, layer)
        else:
            mixer = LatentAttention(
                config.hidden_size,
                config.num_attention_heads,
                config.latent,
                options,
                layer,
                scale=config.head_dim**-0.5,
            )
        return DecoderLayer(config, mixer, mlp_of(config, layer))

    still = Rope(2, 1.0, config.max_position_embeddings, {"rope_type": "none"})
    return Decoder(config, options, create_layer, ropes=[still] * config.num_hidden_layers)


def read_json(keys: MetadataKeys) -> ModelConfig:
    """Read the keys of config.json."""
    fields = latent_fields(keys)
    delta = keys.inner("linear_attn_config")
    heads = delta.integer("num_heads", None) or keys.integer("linear_num_heads")
    dim = delta.integer("head_dim", None) or keys.integer("linear_head_dim")
    width = delta.integer("short_conv_kernel_size", None, low=2, high=8) or keys.integer(
        "linear_conv_kernel_dim", 4, low=2, high=8
    )
    num_experts = keys.integer("num_experts", high=MAX_EXPERTS)
    chosen = keys.integer("num_experts_per_token", high=num_experts)
    expert_size = keys.integer("moe_intermediate_size")
    return KimiConfig(
        architecture=ARCHITECTURE,
        **fields,
        max_position_embeddings=keys.integer("model_max_length", high=1 << 27),
        hidden_act=keys.text("hidden_act", "silu"),
        recurrent_layers=_delta_layers(keys, delta, fields["num_hidden_layers"]),
        shapes=RecurrentShapes((3 * heads * dim, width - 1), (heads, dim, dim)),
        num_experts=num_experts,
        experts_per_token=chosen,
        expert_size=expert_size,
        normalised=keys.flag("moe_renormalize", True),
        plain_layers=first_plain_layers(keys),
        scores=Scores(
            sigmoid=True,
            bias="gate.e_score_correction_bias",
            factor=keys.number("routed_scaling_factor", 1.0),
            groups=expert_groups(keys, num_experts, chosen, "num_expert_group"),
        ),
        shared=SharedExpert("shared_experts", expert_size * keys.integer("num_shared_experts", 1)),
    )


def _delta_layers(keys: MetadataKeys, delta: MetadataKeys, num_layers: int) -> tuple[int, ...]:
    """Return the layers that keep a state. Published files count those that attend from 1."""
    attending = delta.values.get("full_attn_layers")
    types = keys.values.get("layer_types")
    if isinstance(attending, list):
        types = [FULL if layer + 1 in attending else LINEAR for layer in range(num_layers)]
    if (
        not isinstance(types, list)
        or len(types) != num_layers
        or any(entry not in (FULL, LINEAR) for entry in types)
        or FULL not in types
    ):
        raise keys.nonsense(
            "layer_types",
            f"a list of {num_layers} entries, each {FULL} or {LINEAR}, and one at least {FULL}",
        )
    return tuple(layer for layer, entry in enumerate(types) if entry == LINEAR)


FAMILIES = (
    Family(architecture=ARCHITECTURE, model_type="kimi_linear", create=create, read_json=read_json),
)
