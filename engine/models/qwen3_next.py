"""Qwen3-Next and Qwen3.5's mixtures: the layers of Qwen3.5 with experts instead of an MLP.

Besides the experts that its router chooses, every token passes one more, whose result is gated.
"""

from dataclasses import dataclass, replace

from engine.models import qwen3_5
from engine.models.config import ModelConfig
from engine.models.experts_config import ExpertsConfig, gated_shared_expert, json_expert_fields
from engine.models.family import Family
from engine.models.gguf_keys import EXPERT_TENSORS, GgufKeys
from engine.models.metadata_keys import MetadataKeys
from engine.models.qwen3_5 import Qwen35Config, create, fields, gguf_json, gguf_original

QWEN3_NEXT, QWEN3_5_MOE = "Qwen3NextForCausalLM", "Qwen3_5MoeForCausalLM"
EXPERT_SIZE = 512
"""The inner size of experts where a file lacks it."""

GGUF_TENSORS = (
    qwen3_5.GGUF_TENSORS
    | EXPERT_TENSORS
    | {"ssm_in": "linear_attn.in_proj_qkvz", "ssm_ba": "linear_attn.in_proj_ba"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen3NextConfig(ExpertsConfig, Qwen35Config):
    """A configuration with recurrent states and experts."""


def read_qwen3_next(keys: MetadataKeys) -> ModelConfig:
    return Qwen3NextConfig(
        architecture=QWEN3_NEXT,
        **fields(keys),
        **json_expert_fields(keys, num_experts=512, chosen=10, expert_size=EXPERT_SIZE),
        normalised=keys.flag("norm_topk_prob", True),
        shared=gated_shared_expert(keys, EXPERT_SIZE),
        delta={"interleaved": True},
    )


def read_qwen3_5_moe(keys: MetadataKeys) -> ModelConfig:
    """Read the keys of config.json. No layer has a plain MLP, so a file need not state its size."""
    shared = gated_shared_expert(keys, EXPERT_SIZE)
    sizes = {"intermediate_size": shared.inner, **keys.values}
    return Qwen3NextConfig(
        architecture=QWEN3_5_MOE,
        **fields(MetadataKeys(sizes, keys.source)),
        **json_expert_fields(keys, num_experts=256, chosen=8, expert_size=EXPERT_SIZE),
        normalised=True,
        shared=shared,
    )


def read_gguf_next(keys: GgufKeys) -> ModelConfig:
    """Read the keys of a GGUF file. Old ones have the projections of the checkpoint."""
    config = read_qwen3_next(gguf_json(keys))
    assert isinstance(config, Qwen3NextConfig)
    is_old = any(name.endswith(".ssm_in.weight") for name in keys.shapes)
    return replace(
        config, norm_offset=0.0, delta={"interleaved" if is_old else "joins_gates": True}
    )


def read_gguf_moe(keys: GgufKeys) -> ModelConfig:
    config = read_qwen3_5_moe(gguf_json(keys))
    assert isinstance(config, Qwen3NextConfig)
    return replace(config, norm_offset=0.0, delta={"tiled": True})


FAMILIES = (
    Family(
        architecture=QWEN3_NEXT,
        model_type="qwen3_next",
        create=create,
        read_json=read_qwen3_next,
        gguf="qwen3next",
        read_gguf=read_gguf_next,
        gguf_tensors=GGUF_TENSORS,
        gguf_original=gguf_original,
    ),
    Family(
        architecture=QWEN3_5_MOE,
        model_type="qwen3_5_moe_text",
        create=create,
        read_json=read_qwen3_5_moe,
        gguf="qwen35moe",
        read_gguf=read_gguf_moe,
        gguf_tensors=GGUF_TENSORS,
        gguf_original=gguf_original,
    ),
)
