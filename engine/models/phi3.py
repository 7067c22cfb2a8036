"""Phi-3, Phi-3.5 mini, Phi-4 and Phi-4 mini: Llama with fused q, k and v, and fused gate and up.

Phi-4 mini rotates only a part of each head. Models for long texts have LongRoPE. Paper: Abdin et
al. 2024, arXiv:2404.14219.
"""

from typing import Any

from engine.models import gguf_keys, json_keys
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.decoder import pre_norm_decoder
from engine.models.family import Family
from engine.models.gguf_keys import LONG_DIVISORS, SHORT_DIVISORS, GgufKeys
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys
from engine.models.rope_keys import MAX_POSITIONS, rope_base

ARCHITECTURE = "Phi3ForCausalLM"
ORIGINAL_LENGTH = 4096
"""The value of a missing `original_max_position_embeddings`."""


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    return pre_norm_decoder(config, options, fused=True)


def read_json(keys: MetadataKeys) -> ModelConfig:
    """Read the keys of config.json. Old files call LongRoPE `su` or, before it had a name,
    `yarn`."""
    sizes = json_keys.size_fields(keys)
    rope = json_keys.rope_parameters(keys)
    stated = MetadataKeys(dict(rope), json_keys.ROPE_SOURCE)
    part = stated.number("partial_rotary_factor", 1.0, high=1.0)
    kind = stated.text("rope_type", None) or stated.text("type", "default")
    original = keys.integer("original_max_position_embeddings", ORIGINAL_LENGTH)
    rope |= {
        "rope_type": "longrope" if kind in ("su", "yarn") else kind,
        "partial_rotary_factor": None,
        "original_max_position_embeddings": stated.integer(
            "original_max_position_embeddings", original, high=MAX_POSITIONS
        ),
    }
    length, base = json_keys.trained_length(keys), rope_base(keys, "rope_theta")
    return ModelConfig(
        architecture=ARCHITECTURE,
        **sizes,
        **json_keys.rope_fields_of(rope, json_keys.ROPE_SOURCE, length, base),
        rotary_dim=_rotary_dim(
            stated, "partial_rotary_factor", int(sizes["head_dim"] * part), sizes["head_dim"]
        ),
        hidden_act=keys.text("hidden_act", "silu"),
        windows=json_keys.layer_windows(keys, keys.integer("sliding_window", None)),
    )


def read_gguf(keys: GgufKeys) -> ModelConfig:
    """Read the keys of a GGUF file. LongRoPE's lists are tensors; the scale of attention is a
    key."""
    sizes = gguf_keys.size_fields(keys)
    trained = keys.integer(keys.own("context_length"), high=MAX_POSITIONS)
    kind = keys.own("rope.scaling.type")
    if keys.text(kind, "none") not in ("none", "longrope"):
        raise keys.nonsense(kind, "none or longrope")
    rope: dict[str, Any] = {}
    if LONG_DIVISORS in keys.divisors and SHORT_DIVISORS in keys.divisors:
        rope = {
            "rope_type": "longrope",
            "long_factor": keys.divisors[LONG_DIVISORS].tolist(),
            "short_factor": keys.divisors[SHORT_DIVISORS].tolist(),
            "original_max_position_embeddings": keys.integer(
                keys.own("rope.scaling.original_context_length"), ORIGINAL_LENGTH
            ),
            "attention_factor": keys.number(keys.own("rope.scaling.attn_factor"), None),
        }
    dimensions = keys.own("rope.dimension_count")
    return ModelConfig(
        architecture=ARCHITECTURE,
        **sizes,
        **json_keys.rope_fields_of(
            rope, keys.source, trained, rope_base(keys, keys.own("rope.freq_base"))
        ),
        rotary_dim=_rotary_dim(
            keys, dimensions, keys.integer(dimensions, sizes["head_dim"]), sizes["head_dim"]
        ),
        windows=gguf_keys.layer_windows(keys),
    )


def _rotary_dim(keys: MetadataKeys, key: str, dim: int, head_dim: int) -> int | None:
    """Return `ModelConfig.rotary_dim`.

    Raises:
        ModelLoadError: the number is odd or larger than a head; the message names its key.
    """
    if dim % 2 or not 0 < dim <= head_dim:
        raise keys.nonsense(
            key, f"such that the rotated part of a head is even and at most {head_dim}"
        )
    return None if dim == head_dim else dim


FAMILIES = (
    Family(
        architecture=ARCHITECTURE,
        model_type="phi3",
        gguf="phi3",
        create=create,
        read_json=read_json,
        read_gguf=read_gguf,
        gguf_tensors={
            "attn_norm": "input_layernorm",
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
    ),
)
