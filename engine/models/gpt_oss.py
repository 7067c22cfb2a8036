"""GPT-OSS: mixtures of experts with biases, and attention with sinks.

Differences from Mixtral: each query head has a sink, a score that takes part in the softmax without
a value; every second layer has a window; gates are clamped. Checkpoints store the weights of all
experts of a layer in one tensor. Paper: OpenAI 2025, arXiv:2508.10925.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from engine.models import json_keys
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.decoder import Attention, Decoder, DecoderLayer, sparse_mlp
from engine.models.experts_config import MAX_EXPERTS, ExpertsConfig
from engine.models.family import Family
from engine.models.gguf_keys import EXPERT_TENSORS, LAYER_TENSORS, GgufKeys, as_json
from engine.models.json_keys import FULL, SLIDING
from engine.models.layers.weight_slots import WeightOptions, WeightOwner, WeightSlot
from engine.models.metadata_keys import MetadataKeys
from engine.models.rope_keys import rope_base
from engine.quantization.method import TensorSpec
from kernels import silu_mul

ARCHITECTURE = "GptOssForCausalLM"
EXPERTS, CHOSEN, HEAD_DIM, WINDOW = 128, 4, 64, 128
"""The values of missing keys."""
YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
"""The rotary embedding of a file that states none."""
ROPE_BASE = 150000.0
_STACKED = re.compile(r"(.+\.mlp\.experts)\.(gate_up|down)_proj(?:_(bias|blocks|scales))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class GptOssConfig(ExpertsConfig):
    """GPT-OSS's configuration."""

    gate_slope: float
    """Factor of gates in the sigmoid."""
    gate_limit: float
    """The largest gate, and the largest magnitude of what it multiplies."""

    def parts_of(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each expert's part of a stacked tensor. Stacked plain weights are transposed, and
        rows of gate and up alternate."""
        stacked = _STACKED.fullmatch(name)
        if stacked is None:
            yield name.replace(".mlp.router.", ".mlp.gate."), tensor
            return
        experts, layer, kind = stacked.groups("weight")
        for number, part in enumerate(tensor.mT if kind == "weight" else tensor):
            if layer == "down":
                yield f"{experts}.{number}.down_proj.{kind}", part
            else:
                yield f"{experts}.{number}.gate_proj.{kind}", part[::2]
                yield f"{experts}.{number}.up_proj.{kind}", part[1::2]


class SinkAttention(Attention, WeightOwner):
    """Attention that also owns the sinks of its heads."""

    def __init__(self, config: ModelConfig, options: WeightOptions, layer: int) -> None:
        bias = config.attention_bias
        super().__init__(config, options, layer, qkv_bias=bias, o_bias=bias)
        self._num_sinks = config.num_attention_heads

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        name = f"{path}.sinks"

        def load(tensor: Tensor) -> None:
            own = options.parallel.cut(tensor, 0, name)
            self.attention.sinks = own.to(options.device, torch.float32, copy=True)

        return {name: WeightSlot(TensorSpec(shape=(self._num_sinks,)), load)}


def clamped_gate(gate_up: Tensor, slope: float, limit: float) -> Tensor:
    """Compute `gate * sigmoid(slope * gate) * (up + 1)` of clamped halves, [T, 2·I] → [T, I].
    `gate_up` is mutated."""
    # Recordings do not take `chunk`, which returns a list.
    size = gate_up.shape[1] // 2
    gate, up = gate_up.narrow(1, 0, size), gate_up.narrow(1, size, size)
    gate.clamp_(max=limit).mul_(slope)
    up.clamp_(-limit, limit).add_(1.0).div_(slope)
    return silu_mul(gate_up)


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    assert isinstance(config, GptOssConfig)
    gate = partial(clamped_gate, slope=config.gate_slope, limit=config.gate_limit)

    def create_layer(layer: int) -> DecoderLayer:
        mlp = sparse_mlp(config, bias=True, gate=gate)
        return DecoderLayer(config, SinkAttention(config, options, layer), mlp)

    return Decoder(config, options, create_layer)


def read_json(keys: MetadataKeys) -> ModelConfig:
    sizes = json_keys.size_fields(keys, head_dim=HEAD_DIM)
    num_experts = keys.integer("num_local_experts", EXPERTS, high=MAX_EXPERTS)
    alternating = [FULL if layer % 2 else SLIDING for layer in range(sizes["num_hidden_layers"])]
    return GptOssConfig(
        architecture=ARCHITECTURE,
        **sizes,
        **_rope_fields(keys),
        attention_bias=keys.flag("attention_bias", True),
        windows=json_keys.layer_windows(keys, keys.integer("sliding_window", WINDOW), alternating),
        num_experts=num_experts,
        experts_per_token=keys.integer("num_experts_per_tok", CHOSEN, high=num_experts),
        expert_size=sizes["intermediate_size"],
        normalised=True,
        gate_slope=keys.number("swiglu_alpha", 1.702),
        gate_limit=keys.number("swiglu_limit", 7.0),
    )


def _rope_fields(keys: MetadataKeys) -> dict[str, Any]:
    states_rope = keys.values.get("rope_parameters") or keys.values.get("rope_scaling")
    parameters = json_keys.rope_parameters(keys) if states_rope else dict(YARN)
    base = rope_base(keys, "rope_theta", ROPE_BASE)
    trained = json_keys.trained_length(keys)
    return json_keys.rope_fields_of(parameters, json_keys.ROPE_SOURCE, trained, base)


def read_gguf(keys: GgufKeys) -> ModelConfig:
    """Read the keys of a GGUF file. Its scaling ends at no whole dimension, as in all published
    models."""
    found = as_json(keys, {})
    rope = {**found.values["rope_parameters"], "truncate": False}
    return read_json(MetadataKeys({**found.values, "rope_parameters": rope}, keys.source))


FAMILIES = (
    Family(
        architecture=ARCHITECTURE,
        model_type="gpt_oss",
        create=create,
        read_json=read_json,
        gguf="gpt-oss",
        read_gguf=read_gguf,
        gguf_tensors=LAYER_TENSORS
        | EXPERT_TENSORS
        | {
            "post_attention_norm": "post_attention_layernorm",
            "attn_sinks.weight": "self_attn.sinks",
        },
    ),
)
