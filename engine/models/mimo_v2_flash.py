"""MiMo-V2-Flash: five of six layers see a window and have sinks and twice as many key heads.

Values are shorter than keys, and a third of each head is rotated. Report: Xiaomi 2026,
arXiv:2601.02780.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.contract.kv_layout import KvShape
from engine.models import json_keys
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.decoder import Decoder, DecoderLayer, mlp_of
from engine.models.experts_config import (
    MAX_EXPERTS,
    ExpertsConfig,
    expert_groups,
    first_plain_layers,
)
from engine.models.family import Family
from engine.models.forward_context import ForwardContext
from engine.models.gguf_keys import (
    EXPERT_TENSORS,
    LAYER_TENSORS,
    GgufKeys,
    as_json,
    of_layers,
    rotated_share,
)
from engine.models.json_keys import FULL, SLIDING
from engine.models.layers.attention import PagedAttention
from engine.models.layers.experts import Scores
from engine.models.layers.linear import Linear, Shard
from engine.models.layers.rotary import Rope, Rotation
from engine.models.layers.weight_slots import WeightOptions, WeightOwner, WeightSlot, fp32_slots
from engine.models.metadata_keys import MetadataKeys
from engine.models.rope_keys import rope_base

ARCHITECTURE = "MiMoV2FlashForCausalLM"
VALUE_FACTOR = 0.707
"""The factor of values where a file lacks it."""
PERIOD = 6
"""One layer in this many, and the first one, sees all positions where a file does not say."""
ROTATED = 0.334
"""The share of a head that is rotated where a file lacks it."""
BASES = {FULL: 5e6, SLIDING: 1e4}
"""The bases of the wavelengths where a file lacks them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MimoConfig(ExpertsConfig):
    """MiMo-V2-Flash's configuration."""

    local_rope_theta: float
    """The base of the wavelengths in layers with a window."""
    value_dim: int
    """The elements of a value."""
    value_factor: float
    """The factor of values."""


class MimoAttention(nn.Module, WeightOwner):
    """Attention whose values are filled up with zeros to the size of keys; layers with a window
    have sinks."""

    sinks: Tensor

    def __init__(self, config: MimoConfig, options: WeightOptions, layer: int) -> None:
        super().__init__()
        options.parallel.refuse_several("MiMo-V2-Flash")
        hidden, heads = config.hidden_size, config.num_attention_heads
        kv_heads, dim, _ = config.layer_kv_shapes[layer]
        self._value_dim, self._value_factor = config.value_dim, config.value_factor
        bias = config.attention_bias
        self._sizes = [(heads + kv_heads) * dim, kv_heads * self._value_dim]
        shards = (
            Shard("q_proj", heads * dim),
            Shard("k_proj", kv_heads * dim),
            Shard("v_proj", kv_heads * self._value_dim),
        )
        self.qkv_proj = Linear(hidden, shards, bias=bias)
        self.o_proj = Linear(heads * self._value_dim, (Shard("o_proj", hidden),))
        self.attention = PagedAttention(
            layer,
            options.parallel,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=dim,
            scale=dim**-0.5,
            window=config.layer_windows[layer],
        )

    def forward(self, x: Tensor, rotation: Rotation, ctx: ForwardContext) -> Tensor:
        """Map [T, C] to [T, C]."""
        attention, rows, size = self.attention, len(x), self._value_dim
        qkv = self.qkv_proj(x, ctx)
        heads, values = qkv.narrow(1, 0, self._sizes[0]), qkv.narrow(1, *self._sizes)
        values = (values * self._value_factor).view(rows, attention.num_kv_heads, size)
        values = F.pad(values, (0, attention.head_dim - size)).flatten(1)
        found = attention(torch.cat((heads, values), 1), rotation, ctx)
        found = found.view(rows, attention.num_heads, -1)[:, :, :size]
        return self.o_proj(found.reshape(rows, -1), ctx)

    __call__ = forward

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        if self.attention.window is None:
            return {}
        names, shape = {"attention_sink_bias": "sinks"}, (self.attention.num_heads,)
        return fp32_slots(self, path, names, shape, options)

    def process_weights_after_loading(self) -> None:
        if self.attention.window is not None:
            self.attention.sinks = self.sinks


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    assert isinstance(config, MimoConfig)

    def create_layer(layer: int) -> DecoderLayer:
        attention = MimoAttention(config, options, layer)
        return DecoderLayer(config, attention, mlp_of(config, layer))

    assert config.rotary_dim is not None
    whole, local = (
        Rope(config.rotary_dim, theta, config.max_position_embeddings)
        for theta in (config.rope_theta, config.local_rope_theta)
    )
    ropes = [whole if window is None else local for window in config.layer_windows]
    return Decoder(config, options, create_layer, ropes=ropes)


def read_json(keys: MetadataKeys) -> ModelConfig:
    """Read the keys of config.json."""
    eps = keys.number("layernorm_epsilon", None) or keys.number("rms_norm_eps", 1e-5)
    sizes = json_keys.size_fields(
        MetadataKeys({**keys.values, "rms_norm_eps": eps}, keys.source), head_dim=192
    )
    num_layers, head_dim = sizes["num_hidden_layers"], sizes["head_dim"]
    kv_heads = sizes["num_key_value_heads"]
    num_experts = keys.integer("n_routed_experts", high=MAX_EXPERTS)
    chosen = keys.integer("num_experts_per_tok", high=num_experts)
    beside = keys.integer("sliding_window_size", None)
    window = keys.integer("sliding_window", 129) if beside is None else beside + 1
    pattern = [SLIDING if at % PERIOD and at > 1 else FULL for at in range(1, num_layers + 1)]
    windows = json_keys.layer_windows(keys, window, pattern)
    ropes = {kind: _rope(keys, kind) for kind in (FULL, SLIDING)}
    shapes = (KvShape(kv_heads * (1 if one is None else 2), head_dim) for one in windows)
    rotated = {int(head_dim * part) for _, part in ropes.values()}
    if len(rotated) > 1:
        raise keys.nonsense("rope_parameters", "the same partial_rotary_factor for all layers")
    return MimoConfig(
        architecture=ARCHITECTURE,
        **sizes,
        rope_theta=ropes[FULL][0],
        local_rope_theta=ropes[SLIDING][0],
        rotary_dim=rotated.pop(),
        max_position_embeddings=json_keys.trained_length(keys),
        attention_bias=keys.flag("attention_bias", False),
        hidden_act=keys.text("hidden_act", "silu"),
        windows=windows,
        kv_shapes=tuple(shapes),
        value_dim=keys.integer("v_head_dim", 128, high=head_dim),
        value_factor=keys.number("attention_value_scale", VALUE_FACTOR),
        num_experts=num_experts,
        experts_per_token=chosen,
        expert_size=keys.integer("moe_intermediate_size"),
        normalised=keys.flag("norm_topk_prob", True),
        plain_layers=first_plain_layers(keys),
        scores=Scores(
            sigmoid=True,
            bias="gate.e_score_correction_bias",
            factor=keys.number("routed_scaling_factor", 1.0),
            groups=expert_groups(keys, num_experts, chosen),
        ),
    )


def _rope(keys: MetadataKeys, kind: str) -> tuple[float, float]:
    """Read the base of the wavelengths and the share of a head that is rotated, for one type of
    layers."""
    stated: Any = keys.values.get("rope_parameters") or {}
    rope = MetadataKeys(stated, json_keys.ROPE_SOURCE).inner(kind)
    if rope.text("rope_type", "default") != "default":
        raise rope.nonsense("rope_type", "default")
    return rope_base(rope, "rope_theta", BASES[kind]), rope.number(
        "partial_rotary_factor", ROTATED, high=1.0
    )


def read_gguf(keys: GgufKeys) -> ModelConfig:
    """Read the keys of a GGUF file. The published window leaves out the present position."""
    head_dim = keys.integer(keys.own("attention.key_length"))
    rotated = keys.integer(keys.own("rope.dimension_count"), high=head_dim)
    num_layers = keys.integer(keys.own("block_count")) - keys.integer(
        keys.own("nextn_predict_layers"), 0, low=0
    )
    kv_heads = of_layers(keys, "attention.head_count_kv")[:num_layers]
    slides = of_layers(keys, "attention.sliding_window_pattern")[:num_layers]
    names = {
        "sliding_window_size": "attention.sliding_window",
        "n_routed_experts": "expert_count",
        "n_group": "expert_group_count",
        "topk_group": "expert_group_used_count",
        "v_head_dim": "attention.value_length",
        "attention_value_scale": "attention.value_scale",
    }
    bases = {FULL: "rope.freq_base", SLIDING: "rope.freq_base_swa"}
    found = as_json(
        keys,
        names,
        head_dim=head_dim,
        num_key_value_heads=min(kv_heads),
        layer_types=[SLIDING if one else FULL for one in slides],
        mlp_layer_types=[
            "sparse" if f"blk.{layer}.ffn_gate_inp.weight" in keys.shapes else "dense"
            for layer in range(num_layers)
        ],
        rope_parameters={
            kind: {
                "rope_theta": rope_base(keys, keys.own(name), BASES[kind]),
                "partial_rotary_factor": rotated_share(rotated, head_dim),
            }
            for kind, name in bases.items()
        },
    )
    return read_json(found)


FAMILIES = (
    Family(
        architecture=ARCHITECTURE,
        model_type="mimo_v2_flash",
        create=create,
        read_json=read_json,
        gguf="mimo2",
        read_gguf=read_gguf,
        gguf_tensors=LAYER_TENSORS
        | EXPERT_TENSORS
        | {
            "attn_sinks.weight": "self_attn.attention_sink_bias",
            "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
        },
    ),
)
