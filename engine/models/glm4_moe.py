"""GLM 4.5 to 4.7: mixtures whose routers score experts by sigmoids, and one that all tokens pass.

The first layers have no experts, and half of each head is rotated. Report: GLM-4.5 Team 2025,
arXiv:2508.06471.
"""

from dataclasses import dataclass

from engine.models import json_keys
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.decoder import pre_norm_decoder
from engine.models.experts_config import (
    MAX_EXPERTS,
    ExpertsConfig,
    expert_groups,
    first_plain_layers,
)
from engine.models.family import Family
from engine.models.gguf_keys import EXPERT_TENSORS, LAYER_TENSORS, GgufKeys, as_json, has
from engine.models.layers.experts import Scores, SharedExpert
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys

ARCHITECTURE = "Glm4MoeForCausalLM"
EXPERTS, CHOSEN, EXPERT_SIZE, ROTATED = 128, 8, 1408, 0.5
"""The values of missing keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Glm4MoeConfig(ExpertsConfig):
    """The configuration of GLM's mixtures."""

    norms_heads: bool
    """Whether query and key heads are normalised before rotation."""


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    assert isinstance(config, Glm4MoeConfig)
    return pre_norm_decoder(
        config, options, qkv_bias=config.attention_bias, norms_heads=config.norms_heads
    )


def read_json(keys: MetadataKeys) -> ModelConfig:
    """Read the keys of config.json."""
    sizes = json_keys.size_fields(keys)
    num_experts = keys.integer("n_routed_experts", EXPERTS, high=MAX_EXPERTS)
    expert_size = keys.integer("moe_intermediate_size", EXPERT_SIZE)
    chosen = keys.integer("num_experts_per_tok", CHOSEN, high=num_experts)
    shared_size = expert_size * keys.integer("n_shared_experts", 1)
    return Glm4MoeConfig(
        architecture=ARCHITECTURE,
        **sizes,
        **json_keys.partial_rope_fields(keys, sizes["head_dim"], ROTATED),
        attention_bias=keys.flag("attention_bias", False),
        hidden_act=keys.text("hidden_act", "silu"),
        norms_heads=keys.flag("use_qk_norm", False),
        num_experts=num_experts,
        experts_per_token=chosen,
        expert_size=expert_size,
        normalised=keys.flag("norm_topk_prob", True),
        plain_layers=first_plain_layers(keys),
        scores=Scores(
            sigmoid=True,
            bias="gate.e_score_correction_bias",
            factor=keys.number("routed_scaling_factor", 1.0),
            groups=expert_groups(keys, num_experts, chosen),
        ),
        shared=SharedExpert("shared_experts", shared_size),
    )


def read_gguf(keys: GgufKeys) -> ModelConfig:
    names = {
        "n_routed_experts": "expert_count",
        "n_shared_experts": "expert_shared_count",
        "n_group": "expert_group_count",
        "topk_group": "expert_group_used_count",
        "first_k_dense_replace": "leading_dense_block_count",
        "norm_topk_prob": "expert_weights_norm",
        "routed_scaling_factor": "expert_weights_scale",
    }
    return read_json(as_json(keys, names, use_qk_norm=has(keys, "attn_q_norm.weight")))


FAMILIES = (
    Family(
        architecture=ARCHITECTURE,
        model_type="glm4_moe",
        create=create,
        read_json=read_json,
        gguf="glm4moe",
        read_gguf=read_gguf,
        gguf_tensors=LAYER_TENSORS
        | EXPERT_TENSORS
        | {
            "post_attention_norm": "post_attention_layernorm",
            "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
            "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
            "ffn_up_shexp": "mlp.shared_experts.up_proj",
            "ffn_down_shexp": "mlp.shared_experts.down_proj",
        },
    ),
)
