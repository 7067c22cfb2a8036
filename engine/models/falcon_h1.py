"""Falcon-H1: each layer attends and keeps a state by Mamba 2 side by side; an MLP follows.

What goes into these parts and what comes out of them is multiplied by factors of the
configuration. Source: transformers' `modeling_falcon_h1.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from engine.models import json_keys
from engine.models.bamba import (
    GGUF_TENSORS,
    HybridLayer,
    Mamba2Config,
    gguf_mamba,
    gguf_original,
    mamba_fields,
)
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.decoder import Attention, Decoder, gated_mlp
from engine.models.family import Family
from engine.models.forward_context import ForwardContext
from engine.models.gguf_keys import LAYER_TENSORS, GgufKeys, as_json, has
from engine.models.layers.mamba2 import Mamba2, NormPlace
from engine.models.layers.rotary import Rotation
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys

ARCHITECTURE = "FalconH1ForCausalLM"
NUM_PARTS = 5
"""The parts of what Mamba 2 projects: gate, x, b, c and dt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FalconH1Config(Mamba2Config):
    """Falcon-H1's configuration: Mamba 2's, and the factors of its other parts."""

    embedding_scale: float
    score_scale: float
    attention_scale: float
    """Factor of what attention adds."""
    mamba_scale: float
    """Factor of what Mamba adds."""
    gate_scale: float
    """Factor of the MLP's gates before their activation."""
    mlp_scale: float
    """Factor of what the MLP adds."""
    logit_scale: float


class FalconH1Layer(HybridLayer):
    """A layer whose norm feeds both Mamba and attention."""

    def __init__(self, config: FalconH1Config, options: WeightOptions, layer: int) -> None:
        mlp = gated_mlp(config)
        mlp.gate = partial(
            _scaled_gate, gate=mlp.gate, before=config.gate_scale, after=config.mlp_scale
        )
        super().__init__(
            config,
            Mamba2(config, layer, **config.mixer),
            Attention(config, options, layer, scale=config.score_scale),
            mlp,
        )
        self._scales = config.mamba_scale, config.attention_scale

    def mix(self, x: Tensor, rotation: Rotation, ctx: ForwardContext) -> Tensor:
        """Map [T, C] to [T, C] by Mamba and attention."""
        assert self.mamba is not None and self.self_attn is not None
        mamba, attention = self._scales
        found = self.self_attn(x, rotation, ctx).mul_(attention)
        return self.mamba(x, ctx).mul_(mamba).add_(found)


def _scaled_gate(
    gate_up: Tensor, *, gate: Callable[[Tensor], Tensor], before: float, after: float
) -> Tensor:
    """Compute `gate(before · gate, up) · after`, [T, 2·I] → [T, I]. `gate_up` is mutated."""
    gate_up.narrow(1, 0, gate_up.shape[1] // 2).mul_(before)
    return gate(gate_up).mul_(after)


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    assert isinstance(config, FalconH1Config)
    return Decoder(
        config,
        options,
        lambda layer: FalconH1Layer(config, options, layer),
        stream_scale=config.embedding_scale,
        logit_scale=config.logit_scale,
    )


def read_json(keys: MetadataKeys) -> ModelConfig:
    sizes = json_keys.size_fields(keys)
    for name in ("attention_bias", "mlp_bias", "mamba_proj_bias"):
        if keys.flag(name, False):
            raise keys.nonsense(name, "false; factors of layers with biases are not supported")
    every = tuple(range(sizes["num_hidden_layers"]))
    attention_in = keys.number("attention_in_multiplier", 1.0)
    mamba_in = keys.number("ssm_in_multiplier", 1.0)
    gate_scale, mlp_scale = _factors(keys, "mlp_multipliers", 2)
    fields = mamba_fields(keys)
    fields["mixer"] |= {
        "out_bias": keys.flag("projectors_bias", False),
        "multipliers": [mamba_in * one for one in _factors(keys, "ssm_multipliers", NUM_PARTS)],
        "norm": _norm_place(keys),
    }
    return FalconH1Config(
        architecture=ARCHITECTURE,
        **sizes,
        **json_keys.rope_fields(keys),
        **fields,
        recurrent_layers=every,
        attending_layers=every,
        embedding_scale=keys.number("embedding_multiplier", 1.0),
        # Queries and keys are linear in the inputs, and so are values.
        score_scale=attention_in**2
        * keys.number("key_multiplier", 1.0)
        * sizes["head_dim"] ** -0.5,
        attention_scale=attention_in * keys.number("attention_out_multiplier", 1.0),
        mamba_scale=keys.number("ssm_out_multiplier", 1.0),
        gate_scale=gate_scale,
        mlp_scale=mlp_scale,
        logit_scale=keys.number("lm_head_multiplier", 1.0),
    )


def read_gguf(keys: GgufKeys) -> ModelConfig:
    """Read the keys of a GGUF file. llama.cpp's converter has multiplied weights by the factors."""
    found = as_json(
        keys,
        {},
        **gguf_mamba(keys),
        mamba_rms_norm=has(keys, "ssm_norm.weight"),
        mamba_norm_before_gate=False,
    )
    return read_json(found)


def _factors(keys: MetadataKeys, name: str, number: int) -> tuple[float, ...]:
    if keys.values.get(name) is None:
        return (1.0,) * number
    factors = keys.numbers(name)
    if len(factors) != number:
        raise keys.nonsense(name, f"a list of {number} numbers")
    return factors


def _norm_place(keys: MetadataKeys) -> NormPlace:
    if not keys.flag("mamba_rms_norm", False):
        return "none"
    return "before_gate" if keys.flag("mamba_norm_before_gate", True) else "after_gate"


FAMILIES = (
    Family(
        architecture=ARCHITECTURE,
        model_type="falcon_h1",
        create=create,
        read_json=read_json,
        gguf="falcon-h1",
        read_gguf=read_gguf,
        gguf_tensors=LAYER_TENSORS
        | GGUF_TENSORS
        | {
            "ffn_norm": "pre_ff_layernorm",
            "ffn_norm.": "pre_ff_layernorm.weight",
            "ffn_gate": "feed_forward.gate_proj",
            "ffn_up": "feed_forward.up_proj",
            "ffn_down": "feed_forward.down_proj",
        },
        gguf_original=gguf_original,
    ),
)
