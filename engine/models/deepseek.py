"""DeepSeek V2 and V3 and models built like them: latent attention, and mixtures whose experts may
come in groups.

Kimi K2 and Moonlight are DeepSeek V3. GLM 4.7 Flash has its layers, and Mistral 4 also sharpens the
attention of tokens far into a text. Youtu and MiniCPM 3 have no experts.

Reports: DeepSeek-AI 2024, arXiv:2405.04434 and arXiv:2412.19437; MiniCPM, Hu et al. 2024,
arXiv:2404.06395.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from engine.errors import UnsupportedArchitecture
from engine.models import gguf_keys, json_keys
from engine.models.causal_lm import CausalLM
from engine.models.config import MAX_LAYERS, ModelConfig
from engine.models.decoder import Decoder, DecoderLayer, mlp_of
from engine.models.experts_config import (
    MAX_EXPERTS,
    ExpertsConfig,
    expert_groups,
    first_plain_layers,
    gguf_expert_fields,
)
from engine.models.family import Family
from engine.models.gguf_keys import LAYER_TENSORS, GgufKeys
from engine.models.layers.experts import Scores, SharedExpert
from engine.models.layers.latent_attention import LatentAttention, LatentShape
from engine.models.layers.rotary import yarn_magnitude
from engine.models.layers.weight_slots import WeightOptions
from engine.models.llama4 import temperatures
from engine.models.metadata_keys import MetadataKeys

V2, V3 = "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"
MISTRAL4, MINICPM3 = "Mistral4ForCausalLM", "MiniCPM3ForCausalLM"
SCORES_OF = {"greedy": "softmax", "group_limited_greedy": "softmax", "noaux_tc": "sigmoid"}
"""The function of logits for each way to choose experts."""
GROWTH = "llama_4_scaling_beta"
"""The key, among those of rotary embeddings, of how much attention is sharpened."""

GGUF_TENSORS = LAYER_TENSORS | {
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_k_b": "self_attn.k_b_proj",
    "attn_v_b": "self_attn.v_b_proj",
    "ffn_gate_inp": "mlp.gate",
    "exp_probs_b": "mlp.gate.exp_probs_b",
}
for _part in ("gate", "up", "down"):
    GGUF_TENSORS[f"ffn_{_part}_exps"] = f"mlp.experts.*.{_part}_proj"
    GGUF_TENSORS[f"ffn_{_part}_shexp"] = f"mlp.shared_experts.{_part}_proj"

SOFTMAX, SIGMOID = 1, 2
"""The functions of logits in GGUF files."""
NO_EXPERTS: dict[str, Any] = {
    "num_experts": 0,
    "experts_per_token": 0,
    "expert_size": 0,
    "normalised": True,
    "plain_layers": frozenset(range(MAX_LAYERS)),
    "scores": Scores(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepseekConfig(ExpertsConfig):
    """DeepSeek's configuration. Heads have the size of their keys before the cache."""

    latent: LatentShape
    interleaved: bool
    """Whether neighbouring elements are rotated together, instead of those of halves."""
    stream_scale: float = 1.0
    """See `DecoderModel`."""
    logit_scale: float = 1.0

    @property
    def score_scale(self) -> float:
        """The factor of scores, which YaRN changes for longer texts."""
        scaling = self.rope_scaling or {}
        weight: float = scaling.get("mscale_all_dim") or 0.0
        factor: float = scaling.get("factor") or 1.0
        return yarn_magnitude(factor, weight) ** 2 / math.sqrt(self.head_dim)


class Missing(NamedTuple):
    """The values of keys that a file lacks."""

    choice: str = "noaux_tc"
    """How experts are chosen, as `topk_method` says."""
    normalised: bool = True
    plain_layers: int = 0
    """The number of layers without experts, the first ones."""
    interleaved: bool = True
    tied: bool = False


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    assert isinstance(config, DeepseekConfig)
    scaling = config.rope_scaling or {}

    def sharpen(positions: Tensor) -> Tensor:
        # Llama 4 counts positions from 1 here, Mistral 4 from 0.
        floor = scaling["original_max_position_embeddings"]
        return temperatures(positions - 1, floor, scaling[GROWTH])

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
        if scaling.get(GROWTH):
            attention.attention.query_factor = sharpen
        return DecoderLayer(config, attention, mlp_of(config, layer))

    return Decoder(
        config,
        options,
        create_layer,
        stream_scale=config.stream_scale,
        logit_scale=config.logit_scale,
    )


def latent_fields(keys: MetadataKeys, *, tied: bool = False) -> dict[str, Any]:
    """Read the sizes of a model with latent attention: fields of `ModelConfig`, and `latent`.

    Args:
        tied: see `json_keys.size_fields`.
    """
    latent = LatentShape(
        latent=keys.integer("kv_lora_rank"),
        rotated=keys.integer("qk_rope_head_dim"),
        own=keys.integer("qk_nope_head_dim"),
        value=keys.integer("v_head_dim"),
        of_queries=keys.integer("q_lora_rank", None),
    )
    if latent.rotated % 2:
        raise keys.nonsense("qk_rope_head_dim", "an even number")
    keys = MetadataKeys({**keys.values, "head_dim": latent.key}, keys.source)
    sizes = json_keys.size_fields(keys, tied=tied)
    shapes = (latent.cached,) * sizes["num_hidden_layers"]
    return {**sizes, "kv_shapes": shapes, "latent": latent}


def read_json(architecture: str, missing: Missing, keys: MetadataKeys) -> DeepseekConfig:
    """Read the keys of config.json.

    Raises:
        UnsupportedArchitecture: the file describes another model than the published ones.
    """
    if keys.flag("attention_bias", False) or keys.flag("mlp_bias", False):
        raise UnsupportedArchitecture(f"{architecture} with biases is not supported")
    sizes = latent_fields(keys, tied=missing.tied)
    return DeepseekConfig(
        architecture=architecture,
        **sizes,
        **_rope_fields(keys, sizes["latent"]),
        **_expert_fields(architecture, missing, keys),
        interleaved=keys.flag("rope_interleave", missing.interleaved),
        hidden_act=keys.text("hidden_act", "silu"),
    )


def read_minicpm3(keys: MetadataKeys) -> ModelConfig:
    """Read the keys of MiniCPM 3's config.json. What layers add is smaller by a factor; instead the
    stream that they add to is larger, and so are the squares that its norms add epsilon to."""
    whole, heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    values = {**keys.values, "v_head_dim": keys.integer("v_head_dim", whole // heads)}
    missing = Missing(interleaved=False, tied=True)
    config = read_json(MINICPM3, missing, MetadataKeys(values, keys.source))
    depth = math.sqrt(config.num_hidden_layers)
    layer_scale = keys.number("scale_depth", depth) / depth
    return replace(
        config,
        rms_norm_eps=config.rms_norm_eps / layer_scale**2,
        stream_scale=keys.number("scale_emb", 1.0) / layer_scale,
        logit_scale=keys.number("dim_model_base", whole) / whole,
    )


def read_gguf(keys: GgufKeys) -> ModelConfig:
    """Read the keys of a GGUF file, which do not say by which rule V2 chooses groups."""
    own = keys.own
    rotated = keys.integer(own("rope.dimension_count"))
    stated = {
        part: keys.integer(own(f"attention.{part}_length_mla"), None, low=least)
        or keys.integer(own(f"attention.{part}_length"), low=least)
        for part, least in (("key", rotated + 1), ("value", 1))
    }
    latent = LatentShape(
        latent=keys.integer(own("attention.kv_lora_rank")),
        rotated=rotated,
        own=stated["key"] - rotated,
        value=stated["value"],
        of_queries=keys.integer(own("attention.q_lora_rank"), None),
        is_divided="blk.0.attn_k_b.weight" in keys.shapes,
    )
    unused = keys.integer(own("nextn_predict_layers"), 0, low=0)
    # The keys of the parts of heads that are rotated, and of the layers that are used.
    changed = {own(f"attention.{part}_length"): rotated for part in ("key", "value")}
    changed[own("block_count")] = keys.integer(own("block_count"), low=unused + 1) - unused
    keys = GgufKeys({**keys.values, **changed}, keys.source, keys.shapes, keys.divisors)
    sizes = gguf_keys.size_fields(keys, experts=True)
    experts = _gguf_expert_fields(keys)
    return DeepseekConfig(
        architecture=V3 if experts["scores"].sigmoid else V2,
        **(sizes | {"head_dim": latent.key, "num_key_value_heads": sizes["num_attention_heads"]}),
        **_gguf_rope_fields(keys),
        **experts,
        kv_shapes=(latent.cached,) * sizes["num_hidden_layers"],
        latent=latent,
        interleaved=True,
    )


def _gguf_rope_fields(keys: GgufKeys) -> dict[str, Any]:
    """Read the fields about positions. All published models scale vectors and scores by the same
    weight."""
    fields, own = gguf_keys.rope_fields(keys), keys.own
    tenth = keys.number(own("rope.scaling.yarn_log_multiplier"), None)
    weight = None if tenth is None else 10 * tenth
    growth = keys.number(own("attention.temperature_scale"), None)
    stated = {"mscale": weight, "mscale_all_dim": weight, GROWTH: growth}
    if scaling := fields["rope_scaling"]:
        scaling |= {name: number for name, number in stated.items() if number is not None}
    return {**fields, "rotary_dim": keys.integer(own("rope.dimension_count"))}


def _gguf_expert_fields(keys: GgufKeys) -> dict[str, Any]:
    """Read the fields of `ExpertsConfig`. Files of GLM do not say how experts are scored."""
    own = keys.own
    if not keys.integer(own("expert_count"), 0, low=0):
        return NO_EXPERTS
    has_bias = any(name.endswith("exp_probs_b.bias") for name in keys.shapes)
    function = keys.integer(own("expert_gating_func"), SIGMOID if has_bias else SOFTMAX, high=2)
    if has_bias and function != SIGMOID:
        raise keys.nonsense(own("expert_gating_func"), f"{SIGMOID}, as experts have biases")
    fields = gguf_expert_fields(keys, keys.integer(own("feed_forward_length")))
    num_experts, chosen, expert_size = fields.values()
    num_shared = keys.integer(own("expert_shared_count"), 1)
    group_keys = own("expert_group_count"), own("expert_group_used_count")
    return fields | {
        "normalised": keys.flag(own("expert_weights_norm"), False),
        "plain_layers": frozenset(
            range(keys.integer(own("leading_dense_block_count"), 0, low=0, high=MAX_LAYERS))
        ),
        "scores": Scores(
            sigmoid=function == SIGMOID,
            bias="gate.exp_probs_b.bias" if has_bias else None,
            factor=keys.number(own("expert_weights_scale"), 1.0),
            groups=expert_groups(keys, num_experts, chosen, *group_keys),
        ),
        "shared": SharedExpert("shared_experts", expert_size * num_shared),
    }


def _rope_fields(keys: MetadataKeys, latent: LatentShape) -> dict[str, Any]:
    """Read the fields about positions. Mistral 4 states which part of a head is rotated."""
    rope = json_keys.rope_parameters(keys)
    if rope["partial_rotary_factor"] == latent.rotated / latent.key:
        rope["partial_rotary_factor"] = None
    keys = MetadataKeys({**keys.values, "rope_parameters": rope, "rope_scaling": None}, keys.source)
    return {**json_keys.rope_fields(keys), "rotary_dim": latent.rotated}


def _expert_fields(architecture: str, missing: Missing, keys: MetadataKeys) -> dict[str, Any]:
    """Read the fields of `ExpertsConfig`."""
    num_experts = keys.integer("n_routed_experts", 0, low=0, high=MAX_EXPERTS)
    if not num_experts:
        return NO_EXPERTS
    chosen = keys.integer("num_experts_per_tok", high=num_experts)
    expert_size = keys.integer("moe_intermediate_size")
    choice = keys.text("topk_method", missing.choice)
    if choice not in SCORES_OF:
        raise keys.nonsense("topk_method", " or ".join(SCORES_OF))
    function = SCORES_OF[choice]
    if keys.text("scoring_func", function) != function:
        raise keys.nonsense("scoring_func", f"{function}, as topk_method is {choice}")
    normalised = keys.flag("norm_topk_prob", missing.normalised)
    groups = expert_groups(keys, num_experts, chosen)
    if normalised and architecture == V2:
        # Its own code then leaves out the factor, and transformers' code does not normalise.
        raise UnsupportedArchitecture(f"{architecture} with norm_topk_prob is not supported")
    if groups is not None and architecture == MISTRAL4:
        raise UnsupportedArchitecture(f"{architecture} with groups of experts is not supported")
    return {
        "num_experts": num_experts,
        "experts_per_token": chosen,
        "expert_size": expert_size,
        "normalised": normalised,
        "plain_layers": first_plain_layers(keys, missing.plain_layers),
        "scores": Scores(
            sigmoid=function == "sigmoid",
            bias="gate.e_score_correction_bias" if function == "sigmoid" else None,
            factor=keys.number("routed_scaling_factor", 1.0),
            groups=None if choice == "greedy" else groups,
        ),
        "shared": SharedExpert("shared_experts", expert_size * keys.integer("n_shared_experts", 1)),
    }


def _family(
    architecture: str,
    model_type: str,
    reads: Missing | Callable[[MetadataKeys], ModelConfig],
    **gguf: Any,
) -> Family:
    if isinstance(reads, Missing):
        reads = partial(read_json, architecture, reads)
    return Family(
        architecture=architecture,
        model_type=model_type,
        create=create,
        read_json=reads,
        gguf_tensors=GGUF_TENSORS,
        **gguf,
    )


FAMILIES = (
    _family(V2, "deepseek_v2", Missing("greedy", normalised=False)),
    _family(V3, "deepseek_v3", Missing(plain_layers=3), gguf="deepseek2", read_gguf=read_gguf),
    _family("Glm4MoeLiteForCausalLM", "glm4_moe_lite", Missing(plain_layers=1)),
    _family(MISTRAL4, "mistral4", Missing("greedy")),
    _family("YoutuForCausalLM", "youtu", Missing(tied=True)),
    _family(MINICPM3, "minicpm3", read_minicpm3),
)
