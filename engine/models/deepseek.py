"""DeepSeek V2 and V3 and models built like them (Kimi K2, Moonlight, GLM 4.7 Flash): latent
attention, and mixtures whose experts may come in groups.

Reports: DeepSeek-AI 2024, arXiv:2405.04434 and arXiv:2412.19437.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from engine.errors import UnsupportedArchitecture
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
from engine.models.layers.experts import Scores, SharedExpert
from engine.models.layers.latent_attention import LatentAttention, LatentShape
from engine.models.layers.rotary import yarn_magnitude
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys

SCORES_OF = {"greedy": "softmax", "group_limited_greedy": "softmax", "noaux_tc": "sigmoid"}
"""The function of logits for each way to choose experts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepseekConfig(ExpertsConfig):
    """DeepSeek's configuration. Heads have the size of their keys before the cache."""

    latent: LatentShape
    interleaved: bool
    """Whether neighbouring elements are rotated together, instead of those of halves."""

    @property
    def score_scale(self) -> float:
        """The factor of scores. YaRN changes it for longer texts."""
        scaling = self.rope_scaling or {}
        weight = scaling.get("mscale_all_dim") or 0.0
        return self.head_dim**-0.5 * yarn_magnitude(scaling.get("factor", 1.0), weight) ** 2


class Missing(NamedTuple):
    """The values of keys that a file lacks."""

    choice: str
    """How experts are chosen, as `topk_method` says."""
    normalised: bool
    plain_layers: int
    """The number of layers without experts, the first ones."""


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    assert isinstance(config, DeepseekConfig)

    def create_layer(layer: int) -> DecoderLayer:
        attention = LatentAttention(
            config.hidden_size,
            config.num_attention_heads,
            config.latent,
            options,
            layer,
            scale=config.score_scale,
            interleaved=config.interleaved,
        )
        return DecoderLayer(config, attention, mlp_of(config, layer))

    return Decoder(config, options, create_layer)


def latent_fields(keys: MetadataKeys) -> dict[str, Any]:
    """Read the sizes of a model with latent attention: fields of `ModelConfig`, and `latent`."""
    latent = LatentShape(
        latent=keys.integer("kv_lora_rank"),
        rotated=keys.integer("qk_rope_head_dim"),
        own=keys.integer("qk_nope_head_dim"),
        value=keys.integer("v_head_dim"),
        of_queries=keys.integer("q_lora_rank", None),
    )
    keys = MetadataKeys({**keys.values, "head_dim": latent.key}, keys.source)
    sizes = json_keys.size_fields(keys)
    shapes = (latent.cached,) * sizes["num_hidden_layers"]
    return {**sizes, "kv_shapes": shapes, "latent": latent}


def read_json(architecture: str, missing: Missing, keys: MetadataKeys) -> ModelConfig:
    """Read the keys of config.json.

    Raises:
        UnsupportedArchitecture: the file describes another model than the published ones.
    """
    fields = latent_fields(keys)
    choice = keys.text("topk_method", missing.choice)
    if choice not in SCORES_OF:
        raise keys.nonsense("topk_method", " or ".join(SCORES_OF))
    function = SCORES_OF[choice]
    if keys.text("scoring_func", function) != function:
        raise keys.nonsense("scoring_func", f"{function}, as topk_method is {choice}")
    normalised = keys.flag("norm_topk_prob", missing.normalised)
    refused = {
        "biases": keys.flag("attention_bias", False) or keys.flag("mlp_bias", False),
        "norm_topk_prob": normalised and function == "softmax",
    }
    for name in (name for name, is_stated in refused.items() if is_stated):
        raise UnsupportedArchitecture(f"{architecture} with {name} is not supported")
    num_experts = keys.integer("n_routed_experts", high=MAX_EXPERTS)
    chosen = keys.integer("num_experts_per_tok", high=num_experts)
    expert_size = keys.integer("moe_intermediate_size")
    return DeepseekConfig(
        architecture=architecture,
        **fields,
        **json_keys.rope_fields(keys),
        rotary_dim=fields["latent"].rotated,
        interleaved=keys.flag("rope_interleave", True),
        hidden_act=keys.text("hidden_act", "silu"),
        num_experts=num_experts,
        experts_per_token=chosen,
        expert_size=expert_size,
        normalised=normalised,
        plain_layers=first_plain_layers(keys, missing.plain_layers),
        scores=Scores(
            sigmoid=function == "sigmoid",
            bias="gate.e_score_correction_bias" if function == "sigmoid" else None,
            factor=keys.number("routed_scaling_factor", 1.0),
            groups=None if choice == "greedy" else expert_groups(keys, num_experts, chosen),
        ),
        shared=SharedExpert("shared_experts", expert_size * keys.integer("n_shared_experts", 1)),
    )


def _family(architecture: str, model_type: str, missing: Missing) -> Family:
    reads = partial(read_json, architecture, missing)
    return Family(architecture=architecture, model_type=model_type, create=create, read_json=reads)


FAMILIES = (
    _family("DeepseekV2ForCausalLM", "deepseek_v2", Missing("greedy", False, 0)),
    _family("DeepseekV3ForCausalLM", "deepseek_v3", Missing("noaux_tc", True, 3)),
    _family("Glm4MoeLiteForCausalLM", "glm4_moe_lite", Missing("noaux_tc", True, 1)),
)
