"""Llama 4: most layers have aligned windows, the others see all of a text without rotation.

Neighbouring elements of a head are rotated together, and heads are normalised after that without
weights. A token's only expert gets its inputs times its score. Source: transformers'
`modeling_llama4.py`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engine.models import json_keys
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.decoder import Attention, Decoder, gated_mlp, rope_of
from engine.models.experts_config import MAX_EXPERTS, ExpertsConfig
from engine.models.family import Family
from engine.models.forward_context import ForwardContext
from engine.models.gguf_keys import EXPERT_TENSORS, LAYER_TENSORS, GgufKeys, as_json
from engine.models.json_keys import FULL
from engine.models.layers.experts import Scores, SharedExpert, SparseMlp
from engine.models.layers.mlp import GatedMlp
from engine.models.layers.norm import RmsNorm
from engine.models.layers.rotary import Rope, Rotation
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys
from engine.models.rope_keys import rope_base

ARCHITECTURE = "Llama4ForCausalLM"
ALIGNED = "chunked_attention"
WINDOW, FLOOR = 8192, 8192
"""The positions of a window, and between two temperatures, where a file lacks them."""
ROPE_BASE = 500000.0
EXPERTS_WITHOUT_NORMS = 128
_STACKED = re.compile(r"(.+\.feed_forward\.experts)\.(gate_up|down)_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama4Config(ExpertsConfig):
    """Llama 4's configuration. Windows are aligned."""

    rotated_layers: frozenset[int]
    norms_heads: bool
    """Whether rotated heads are normalised."""
    temperature: tuple[float, float] | None
    """The positions between two temperatures of layers without rotation, and their growth; None
    for none."""

    def parts_of(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each expert's part of a stacked tensor, whose matrices are transposed."""
        stacked = _STACKED.fullmatch(name)
        if stacked is None:
            yield name, tensor
            return
        experts, layer = stacked.groups()
        for number, part in enumerate(tensor.mT):
            if layer == "down":
                yield f"{experts}.{number}.down_proj.weight", part
            else:
                gate, up = part.tensor_split(2)
                yield f"{experts}.{number}.gate_proj.weight", gate
                yield f"{experts}.{number}.up_proj.weight", up


def temperatures(positions: Tensor, floor: float, growth: float) -> Tensor:
    """Return the factors of queries at [T] positions, [T, 1, 1].

    Paper: Nakanishi 2025, arXiv:2501.19399.
    """
    steps = torch.floor((positions.float() + 1.0) / floor)
    return (torch.log1p(steps) * growth + 1.0).view(-1, 1, 1)


def _attention(config: Llama4Config, options: WeightOptions, layer: int) -> Attention:
    is_rotated = layer in config.rotated_layers
    norms = None
    if is_rotated and config.norms_heads:
        # A rotation keeps the length of a head, so its norm may come first.
        eps = config.rms_norm_eps
        norms = tuple(RmsNorm(config.head_dim, eps, learned=False) for _ in range(2))
    attention = Attention(
        config,
        options,
        layer,
        qkv_bias=config.attention_bias,
        o_bias=config.attention_bias,
        head_norms=None if norms is None else (norms[0], norms[1]),
        interleaved=is_rotated,
        aligned=config.layer_windows[layer] is not None,
    )
    if not is_rotated and config.temperature is not None:
        floor, growth = config.temperature
        attention.attention.query_factor = partial(temperatures, floor=floor, growth=growth)
    return attention


class Llama4Mixture(SparseMlp):
    """A mixture of which a token passes one expert, which gets the token's states times its score,
    and a shared one."""

    def __init__(self, config: Llama4Config) -> None:
        hidden, inner, act = config.hidden_size, config.expert_size, config.hidden_act
        super().__init__(
            hidden,
            inner,
            act,
            num_experts=config.num_experts,
            top_k=1,
            normalised=False,
            scores=Scores(sigmoid=True),
            router="router",
            shared=SharedExpert("shared_expert", inner),
        )

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """Map [T, C] to [T, C]."""
        routing = self.gate.choose(x)
        scaled = (x * routing.weights).to(x.dtype)
        routing = replace(routing, weights=torch.ones_like(routing.weights))
        return self.experts.mix(scaled, routing, ctx).add_(self._pass_shared(x, ctx))

    __call__ = forward


class Llama4Layer(nn.Module):
    """A layer with a norm before attention and one before the MLP or mixture."""

    def __init__(self, config: Llama4Config, options: WeightOptions, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = _attention(config, options, layer)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward: GatedMlp | Llama4Mixture
        is_plain = layer in config.plain_layers
        self.feed_forward = gated_mlp(config) if is_plain else Llama4Mixture(config)

    def forward(
        self, x: Tensor, residual: Tensor, rotation: Rotation, ctx: ForwardContext
    ) -> Tensor:
        """See `DecoderLayer.forward`."""
        x = self.self_attn(self.input_layernorm.add(x, residual, ctx), rotation, ctx)
        return self.feed_forward(self.post_attention_layernorm.add(x, residual, ctx), ctx)

    __call__ = forward


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    assert isinstance(config, Llama4Config)
    rotated = rope_of(config)
    # Two elements take the least memory.
    still = Rope(2, config.rope_theta, config.max_position_embeddings, {"rope_type": "none"})
    layers = range(config.num_hidden_layers)
    return Decoder(
        config,
        options,
        lambda layer: Llama4Layer(config, options, layer),
        ropes=[rotated if layer in config.rotated_layers else still for layer in layers],
    )


def read_json(keys: MetadataKeys) -> ModelConfig:
    sizes = json_keys.size_fields(keys, head_dim=128)
    num_layers, expert_size = sizes["num_hidden_layers"], sizes["intermediate_size"]
    sizes["intermediate_size"] = keys.integer("intermediate_size_mlp", 16384)
    rotated = _rotated_layers(keys, num_layers)
    temperature = None
    if keys.values.get("attn_temperature_tuning", True):  # some files have a number
        temperature = (keys.number("floor_scale", FLOOR), keys.number("attn_scale", 0.1))
    return Llama4Config(
        architecture=ARCHITECTURE,
        **sizes,
        **json_keys.rope_fields_of(
            json_keys.rope_parameters(keys),
            json_keys.ROPE_SOURCE,
            json_keys.trained_length(keys),
            rope_base(keys, "rope_theta", ROPE_BASE),
        ),
        attention_bias=keys.flag("attention_bias", False),
        hidden_act=keys.text("hidden_act", "silu"),
        windows=_windows(keys, num_layers, rotated),
        num_experts=keys.integer("num_local_experts", 16, high=MAX_EXPERTS),
        experts_per_token=keys.integer("num_experts_per_tok", 1, high=1),
        expert_size=expert_size,
        normalised=False,
        plain_layers=_plain_layers(keys, num_layers),
        rotated_layers=rotated,
        norms_heads=keys.flag("use_qk_norm", True),
        temperature=temperature,
    )


def _rotated_layers(keys: MetadataKeys, num_layers: int) -> frozenset[int]:
    """Return the layers with a rotation, which `no_rope_layers` marks with 1."""
    marks: Any = keys.values.get("no_rope_layers")
    if not marks:
        interval = keys.integer("no_rope_layer_interval", 4)
        return frozenset(layer for layer in range(num_layers) if (layer + 1) % interval)
    if not isinstance(marks, list) or len(marks) < num_layers or {*marks} - {0, 1}:
        raise keys.nonsense("no_rope_layers", f"a list of {num_layers} entries, each 0 or 1")
    return frozenset(layer for layer in range(num_layers) if marks[layer])


def _windows(
    keys: MetadataKeys, num_layers: int, rotated: frozenset[int]
) -> tuple[int | None, ...]:
    """Return the window of each layer, None for layers that see all positions."""
    if keys.values.get("attention_chunk_size", WINDOW) is None:
        return ()
    size = keys.integer("attention_chunk_size", WINDOW)
    types = keys.values.get("layer_types")
    if types is None:
        types = [ALIGNED if layer in rotated else FULL for layer in range(num_layers)]
    if (
        not isinstance(types, list)
        or len(types) != num_layers
        or any(entry not in (FULL, ALIGNED) for entry in types)
    ):
        raise keys.nonsense(
            "layer_types", f"a list of {num_layers} entries, each {FULL} or {ALIGNED}"
        )
    return tuple(size if entry == ALIGNED else None for entry in types)


def _plain_layers(keys: MetadataKeys, num_layers: int) -> frozenset[int]:
    """Return the layers without experts. Every `interleave_moe_layer_step`-th layer has experts,
    unless `moe_layers` lists them."""
    listed: Any = keys.values.get("moe_layers")
    if listed is None:
        step = keys.integer("interleave_moe_layer_step", 1)
        listed = list(range(step - 1, num_layers, step))
    if not isinstance(listed, list) or not all(isinstance(layer, int) for layer in listed):
        raise keys.nonsense("moe_layers", "a list of layer numbers")
    return frozenset(range(num_layers)) - frozenset(listed)


def read_gguf(keys: GgufKeys) -> ModelConfig:
    """Read the keys of a GGUF file. Only Maverick, with 128 experts, does not normalise heads; a
    window of 0 means that all layers see and rotate everything."""
    names = {
        "intermediate_size": "expert_feed_forward_length",
        "intermediate_size_mlp": "feed_forward_length",
        "interleave_moe_layer_step": "interleave_moe_layer_step",
    }
    values: dict[str, Any] = {}
    if keys.integer(keys.own("attention.sliding_window"), None, low=0) == 0:
        num_layers = keys.integer(keys.own("block_count"))
        values = {"layer_types": [FULL] * num_layers, "no_rope_layers": [1] * num_layers}
    has_norms = keys.integer(keys.own("expert_count")) != EXPERTS_WITHOUT_NORMS
    return read_json(as_json(keys, names, use_qk_norm=has_norms, **values))


FAMILIES = (
    Family(
        architecture=ARCHITECTURE,
        model_type="llama4_text",
        create=create,
        read_json=read_json,
        gguf="llama4",
        read_gguf=read_gguf,
        gguf_tensors={
            own: name.replace("mlp.", "feed_forward.")
            for own, name in (LAYER_TENSORS | EXPERT_TENSORS).items()
        }
        | {"ffn_gate_inp": "feed_forward.router"},
    ),
)
