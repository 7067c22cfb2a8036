"""Hunyuan V1, dense and with experts: Llama with norms of query and key heads after the rotation.

Source: transformers' `modeling_hunyuan_v1_dense.py` and `modeling_hunyuan_v1_moe.py`.
"""

from typing import Any

from torch import Tensor

from engine.models import gguf_keys, json_keys
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.decoder import Attention, Decoder, DecoderLayer, gated_mlp, sparse_mlp
from engine.models.experts_config import MAX_EXPERTS, ExpertsConfig, gguf_expert_fields
from engine.models.family import Family
from engine.models.gguf_keys import LAYER_TENSORS, GgufKeys
from engine.models.layers.experts import SharedExpert
from engine.models.layers.norm import RmsNorm
from engine.models.layers.weight_slots import WeightOptions, WeightOwner, WeightSlot, fp32_slots
from engine.models.metadata_keys import MetadataKeys
from engine.models.rope_keys import rope_base

DENSE, MIXTURE = "HunYuanDenseV1ForCausalLM", "HunYuanMoEV1ForCausalLM"
SHARED = "shared_mlp"
"""The name of the expert that all tokens pass."""
GGUF_TENSORS = LAYER_TENSORS | {
    "attn_q_norm": "self_attn.query_layernorm",
    "attn_k_norm": "self_attn.key_layernorm",
    "ffn_gate_inp": "mlp.gate.wg",
    "ffn_gate_exps": "mlp.experts.*.gate_proj",
    "ffn_up_exps": "mlp.experts.*.up_proj",
    "ffn_down_exps": "mlp.experts.*.down_proj",
    "ffn_gate_shexp": "mlp.shared_mlp.gate_proj",
    "ffn_up_shexp": "mlp.shared_mlp.up_proj",
    "ffn_down_shexp": "mlp.shared_mlp.down_proj",
}


class NormedAttention(Attention, WeightOwner):
    """Attention whose heads are normalised after their rotation, which keeps their length: they are
    divided by it before, and the weights of both norms multiply the rotated queries."""

    query_weight: Tensor
    key_weight: Tensor

    def __init__(self, config: ModelConfig, options: WeightOptions, layer: int) -> None:
        bias = config.attention_bias
        q_norm, k_norm = (
            RmsNorm(config.head_dim, config.rms_norm_eps, learned=False) for _ in range(2)
        )
        super().__init__(
            config, options, layer, qkv_bias=bias, o_bias=bias, head_norms=(q_norm, k_norm)
        )

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        names = {
            "query_layernorm.weight": "query_weight",
            "key_layernorm.weight": "key_weight",
        }
        return fp32_slots(self, path, names, (self.attention.head_dim,), options)

    def process_weights_after_loading(self) -> None:
        weight = self.query_weight * self.key_weight
        self.attention.query_factor = lambda positions: weight


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    def create_layer(layer: int) -> DecoderLayer:
        attention = NormedAttention(config, options, layer)
        if isinstance(config, ExpertsConfig):
            return DecoderLayer(config, attention, sparse_mlp(config, router="gate.wg"))
        return DecoderLayer(config, attention, gated_mlp(config))

    return Decoder(config, options, create_layer)


def read_dense(keys: MetadataKeys) -> ModelConfig:
    return ModelConfig(architecture=DENSE, **_fields(keys))


def read_mixture(keys: MetadataKeys) -> ModelConfig:
    fields = _fields(keys)
    num_experts = _of_all_layers(keys, "num_experts").integer("num_experts", high=MAX_EXPERTS)
    chosen = _of_all_layers(keys, "moe_topk").integer("moe_topk", 1, high=num_experts)
    return ExpertsConfig(
        architecture=MIXTURE,
        **fields,
        num_experts=num_experts,
        experts_per_token=chosen,
        expert_size=fields["intermediate_size"],
        normalised=True,
        shared=SharedExpert(SHARED, fields["intermediate_size"]),
    )


def _fields(keys: MetadataKeys) -> dict[str, Any]:
    """Read the fields of `ModelConfig`, all but `architecture`. A scaling with `alpha` stretches
    the base of the wavelengths alone, whatever a text's length."""
    sizes = json_keys.size_fields(keys)
    rope = json_keys.rope_parameters(keys)
    scaling = MetadataKeys(rope, json_keys.ROPE_SOURCE)
    base = rope_base(scaling, "rope_theta", rope_base(keys, "rope_theta"))
    alpha = scaling.number("alpha", None)
    if alpha is not None and "dynamic" in (rope.get("rope_type"), rope.get("type")):
        rope = {"rope_theta": base * alpha ** (sizes["head_dim"] / (sizes["head_dim"] - 2))}
    trained = json_keys.trained_length(keys)
    return {
        **sizes,
        **json_keys.rope_fields_of(rope, json_keys.ROPE_SOURCE, trained, base),
        "attention_bias": keys.flag("attention_bias", False),
        "hidden_act": keys.text("hidden_act", "silu"),
    }


def _of_all_layers(keys: MetadataKeys, name: str) -> MetadataKeys:
    """Return the keys with one number for a list that has the same one for each layer."""
    value = keys.values.get(name)
    if not isinstance(value, list):
        return keys
    if not value or any(entry != value[0] for entry in value):
        raise keys.nonsense(name, "a number, or a list of equal ones")
    return MetadataKeys({**keys.values, name: value[0]}, keys.source)


def read_gguf_dense(keys: GgufKeys) -> ModelConfig:
    return ModelConfig(architecture=DENSE, **_gguf_fields(keys))


def read_gguf_mixture(keys: GgufKeys) -> ModelConfig:
    fields = _gguf_fields(keys, experts=True)
    experts = gguf_expert_fields(keys, fields["intermediate_size"])
    return ExpertsConfig(
        architecture=MIXTURE,
        **fields,
        **experts,
        normalised=True,
        shared=SharedExpert(SHARED, experts["expert_size"]),
    )


def _gguf_fields(keys: GgufKeys, *, experts: bool = False) -> dict[str, Any]:
    """Read the fields of `ModelConfig`, all but `architecture`. A file has the stretched base."""
    return {
        **gguf_keys.size_fields(keys, experts=experts),
        **gguf_keys.rope_fields(keys),
        **gguf_keys.bias_fields(keys),
    }


FAMILIES = (
    Family(
        architecture=DENSE,
        model_type="hunyuan_v1_dense",
        gguf="hunyuan-dense",
        create=create,
        read_json=read_dense,
        read_gguf=read_gguf_dense,
        gguf_tensors=GGUF_TENSORS,
    ),
    Family(
        architecture=MIXTURE,
        model_type="hunyuan_v1_moe",
        gguf="hunyuan-moe",
        create=create,
        read_json=read_mixture,
        read_gguf=read_gguf_mixture,
        gguf_tensors=GGUF_TENSORS,
    ),
)
