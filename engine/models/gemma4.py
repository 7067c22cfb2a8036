"""Gemma 4's text models: dense, with inputs for each layer (E2B, E4B), and with experts (26B-A4B).

Differences from Gemma 3: layers that see the whole context have larger heads and fewer of them for
keys, whose projection may also give the values; values are normalised; the last layers may read the
keys and values of earlier ones; each layer's output is scaled. With inputs for each layer, a second
embedding gives every token a vector per layer. Experts work beside the MLP, not in its place.
Source: transformers' `modeling_gemma4.py`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.contract.kv_layout import KvShape
from engine.errors import UnsupportedArchitecture
from engine.models import json_keys
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.decoder import Attention, Decoder, DecoderModel
from engine.models.experts_config import MAX_EXPERTS, ExpertsConfig
from engine.models.family import Family
from engine.models.forward_context import ForwardContext
from engine.models.gguf_keys import LAYER_TENSORS, ROPE_DIVISORS, GgufKeys, as_json, of_layers
from engine.models.json_keys import FULL, SLIDING
from engine.models.layers.embedding import TokenEmbedding
from engine.models.layers.experts import Experts, Router, Scores
from engine.models.layers.linear import Linear, Shard
from engine.models.layers.mlp import GatedMlp
from engine.models.layers.norm import LearnedVector, RmsNorm
from engine.models.layers.rotary import Rope, Rotation
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys
from engine.models.rope_keys import rope_base
from kernels import Routing

ARCHITECTURE, UNIFIED = "Gemma4ForCausalLM", "Gemma4UnifiedForCausalLM"
HEAD_DIM, GLOBAL_HEAD_DIM, WINDOW, UNIFIED_WINDOW, PERIOD = 256, 512, 512, 1024, 6
"""The values of missing keys; one layer in `PERIOD` sees the whole context."""
INPUT_SIZE, VOCAB = 256, 262144
"""The values of missing keys about inputs for each layer."""
ROPES: Mapping[str, dict[str, Any]] = {
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
    SLIDING: {"rope_type": "default", "rope_theta": 1e4},
}
"""The rotary embeddings of a file that states none."""
TABLE = "model.embed_tokens_per_layer"
"""The name of the embedding of inputs for each layer."""
GGUF_TENSORS = LAYER_TENSORS | {
    "per_layer_token_embd": TABLE,
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_STACKED = re.compile(r"(.+\.experts)\.(gate_up|down)_proj")
_OF_KEYS = re.compile(r"model\.layers\.(\d+)\.self_attn\.[kv]_(?:proj|norm)\..+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemma4Config(ExpertsConfig):
    """The configuration of Gemma 4 and Gemma 3n. The base class's rope is that of layers that see
    the whole context, and `intermediate_size` that of the largest MLP."""

    local_rope_theta: float
    local_rope_scaling: dict[str, Any] | None
    """Scaling of the sliding layers' rope."""
    inner_sizes: tuple[int, ...]
    """The inner size of each layer's MLP."""
    values_are_keys: bool = False
    """Whether layers that see the whole context take values from the keys' projection."""
    layer_input_size: int = 0
    """The size of the inputs for each layer; 0 if there are none."""
    layer_input_vocab: int = 0
    """The tokens that have such inputs; others get those of token 0."""
    pad_token_id: int = 0
    """The token whose inputs for each layer are looked up for rows of pictures."""
    logit_soft_cap: float | None = None

    @property
    def numbers_beside_layers(self) -> int:
        """See `ModelConfig`: the inputs for each layer."""
        return self.num_hidden_layers * self.layer_input_size

    def rope_of(self, layer: int) -> Rope:
        """Return the rope of a layer."""
        base = self.local_rope_theta, self.local_rope_scaling
        if self.layer_windows[layer] is None:
            base = self.rope_theta, self.rope_scaling
        return Rope(
            self.layer_kv_shapes[layer].head_dim, base[0], self.max_position_embeddings, base[1]
        )

    def parts_of(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each expert's part of a stacked tensor. Published files also have keys and values
        of layers that read those of others; they are left out."""
        unread = _OF_KEYS.fullmatch(name)
        if unread is not None and self._reads_another(int(unread[1])):
            return
        stacked = _STACKED.fullmatch(name)
        if stacked is None:
            yield name.replace(".router.scale", ".router.norm.weight"), tensor
            return
        experts, layer = stacked.groups()
        for number, part in enumerate(tensor):
            if layer == "down":
                yield f"{experts}.{number}.down_proj.weight", part
            else:
                gate, up = part.chunk(2)
                yield f"{experts}.{number}.gate_proj.weight", gate
                yield f"{experts}.{number}.up_proj.weight", up

    def _reads_another(self, layer: int) -> bool:
        return layer < self.num_hidden_layers and self.layer_kv_sources[layer] != layer


class LayerWithInput(nn.Module):
    """The parts that Gemma 4's and Gemma 3n's layers have in common."""

    def __init__(self, config: Gemma4Config, options: WeightOptions, layer: int) -> None:
        super().__init__()
        self.number = layer
        hidden, size = config.hidden_size, config.layer_input_size
        dim = config.layer_kv_shapes[layer].head_dim
        self.input_layernorm = norm_of(config)
        self.self_attn = Attention(
            config,
            options,
            layer,
            qkv_bias=config.attention_bias,
            o_bias=config.attention_bias,
            head_norms=(norm_of(config, dim), norm_of(config, dim)),
            value_norm=RmsNorm(dim, config.rms_norm_eps, learned=False),
            values_are_keys=config.values_are_keys and config.layer_windows[layer] is None,
            scale=1.0,
        )
        self.self_attn.attention.looks_ahead = config.layer_windows[layer] is not None
        self.post_attention_layernorm = norm_of(config)
        self.pre_feedforward_layernorm = norm_of(config)
        self.mlp = GatedMlp(hidden, config.inner_sizes[layer], config.hidden_act)
        self.post_feedforward_layernorm = norm_of(config)
        self._activate = self.mlp.gate
        if size:
            self.per_layer_input_gate = Linear(hidden, (Shard("per_layer_input_gate", size),))
            self.per_layer_projection = Linear(size, (Shard("per_layer_projection", hidden),))
            self.post_per_layer_input_norm = norm_of(config)

    def from_input(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """Map [T, C] to the layer's input, weighed by a gate of `x`, in [T, C]."""
        assert ctx.layer_inputs is not None
        gate = self.per_layer_input_gate(x, ctx)
        gated = self._activate(torch.cat((gate, ctx.layer_inputs[:, self.number]), 1))
        return self.post_per_layer_input_norm(self.per_layer_projection(gated, ctx), ctx)


class Gemma4Layer(LayerWithInput):
    """A layer with norms before and after attention, and before and after the MLP, experts beside
    the MLP if the model has them, and an input of its own if the model has those."""

    def __init__(self, config: Gemma4Config, options: WeightOptions, layer: int) -> None:
        super().__init__(config, options, layer)
        self.layer_scalar = LearnedVector(1)
        self._has_input = config.layer_input_size > 0
        self.experts: Experts | None = None
        if config.num_experts:
            self.router = ScaledRouter(config)
            self.experts = Experts(
                config.num_experts, config.hidden_size, config.expert_size, config.hidden_act
            )
            self.post_feedforward_layernorm_1 = norm_of(config)
            self.pre_feedforward_layernorm_2 = norm_of(config)
            self.post_feedforward_layernorm_2 = norm_of(config)

    def forward(
        self, x: Tensor, residual: Tensor, rotation: Rotation, ctx: ForwardContext
    ) -> Tensor:
        """See `DecoderLayer.forward`."""
        x = self.self_attn(self.input_layernorm.add(x, residual, ctx), rotation, ctx)
        x = self.post_attention_layernorm(x, ctx)
        x = self.mlp(self.pre_feedforward_layernorm.add(x, residual, ctx), ctx)
        if self.experts is not None:
            routing = self.router.choose(residual, ctx)
            mixed = self.experts.mix(self.pre_feedforward_layernorm_2(residual, ctx), routing, ctx)
            x = self.post_feedforward_layernorm_1(x, ctx)
            x.add_(self.post_feedforward_layernorm_2(mixed, ctx))
        x = self.post_feedforward_layernorm(x, ctx)
        if self._has_input:
            residual.add_(x)
            x = self.from_input(residual, ctx)
        residual.mul_(self.layer_scalar.weight)
        return x.mul_(self.layer_scalar.weight)

    __call__ = forward


class ScaledRouter(nn.Module):
    """A router that normalises what it reads, and multiplies the weight of each expert by a learned
    factor."""

    def __init__(self, config: Gemma4Config) -> None:
        super().__init__()
        self.norm = norm_of(config)
        self.proj = Router(
            "proj",
            config.hidden_size,
            config.num_experts,
            config.experts_per_token,
            normalised=True,
            scores=Scores(logit_factor=config.hidden_size**-0.5),
        )
        self.per_expert_scale = LearnedVector(config.num_experts)

    def choose(self, x: Tensor, ctx: ForwardContext) -> Routing:
        """Choose the experts of the rows [T, C]."""
        routing = self.proj.choose(self.norm(x, ctx))
        # Expert e has the places starts[e] ... starts[e + 1] - 1.
        chosen = torch.searchsorted(routing.starts, routing.places, right=True) - 1
        scale = self.per_expert_scale.weight.float()[chosen]
        return replace(routing, weights=routing.weights * scale)


class ModelWithInputs(DecoderModel):
    """A `DecoderModel` whose layers have inputs of their own: a part that is looked up, and a part
    that is computed from the token's embedding."""

    def __init__(self, *parts: Any, config: Gemma4Config) -> None:
        super().__init__(*parts)
        num_layers, size = config.num_hidden_layers, config.layer_input_size
        self._num_layers = num_layers
        self._vocab, self._pad = config.layer_input_vocab, config.pad_token_id
        self.embed_tokens_per_layer = TokenEmbedding(
            config.layer_input_vocab, num_layers * size, scale=size**0.5
        )
        name = "per_layer_model_projection"
        self.per_layer_model_projection = Linear(
            config.hidden_size, (Shard(name, num_layers * size),)
        )
        # The projection's factor C**-0.5 only matters beside the norm's epsilon.
        self.per_layer_projection_norm = RmsNorm(size, config.rms_norm_eps * config.hidden_size)

    def forward(self, token_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        """See `CausalLM.forward`."""
        residual = self.embed_tokens(token_ids, ctx)
        ctx = replace(ctx, layer_inputs=self._inputs(token_ids, residual, ctx))
        return self.norm.add(self.run_layers(residual, positions, ctx), residual, ctx)

    __call__ = forward

    def _inputs(self, token_ids: Tensor, embedded: Tensor, ctx: ForwardContext) -> Tensor:
        """Compute [T, L, P]. The part that is looked up is that of padding for rows of pictures."""
        if ctx.states is not None:
            token_ids = token_ids.index_fill(0, ctx.states.rows, self._pad)
        token_ids = torch.where(token_ids < self._vocab, token_ids, 0)
        looked_up = self.embed_tokens_per_layer(token_ids, replace(ctx, states=None))
        projected = self.per_layer_model_projection(embedded, ctx)
        size = self.per_layer_projection_norm.size
        normed = self.per_layer_projection_norm(projected.view(-1, size))
        inputs = looked_up.add_(normed.view_as(looked_up)).mul_(2.0**-0.5)
        return inputs.view(len(token_ids), self._num_layers, size)


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    assert isinstance(config, Gemma4Config)
    has_inputs = config.layer_input_size > 0
    return Decoder(
        config,
        options,
        lambda layer: Gemma4Layer(config, options, layer),
        ropes=[config.rope_of(layer) for layer in range(config.num_hidden_layers)],
        embedding_scale=config.hidden_size**0.5,
        soft_cap=config.logit_soft_cap,
        create_model=partial(ModelWithInputs, config=config) if has_inputs else DecoderModel,
    )


def read_json(keys: MetadataKeys) -> ModelConfig:
    """Read the keys of config.json.

    Raises:
        UnsupportedArchitecture: the model's attention is bidirectional, as in encoders.
    """
    if keys.text("use_bidirectional_attention", None) == "all":
        raise UnsupportedArchitecture("Gemma 4 with bidirectional attention is not supported")
    sizes = json_keys.size_fields(keys, head_dim=HEAD_DIM, tied=True)
    num_layers = sizes["num_hidden_layers"]
    # The last layer sees the whole context, whatever a file says.
    types = [SLIDING if (layer + 1) % PERIOD else FULL for layer in range(num_layers)]
    windows = json_keys.layer_windows(keys, keys.integer("sliding_window", WINDOW), types)
    windows = (*windows[:-1], None)
    sources = kv_sources(keys, windows)
    inner = sizes["intermediate_size"]
    is_wide = keys.flag("use_double_wide_mlp", False)
    inner_sizes = tuple(
        2 * inner if is_wide and source != layer else inner for layer, source in enumerate(sources)
    )
    num_experts = 0
    if keys.flag("enable_moe_block", False):
        num_experts = keys.integer("num_experts", high=MAX_EXPERTS)
    return Gemma4Config(
        architecture=ARCHITECTURE,
        **sizes | {"intermediate_size": max(inner_sizes)},
        **rope_fields(keys, ROPES),
        attention_bias=keys.flag("attention_bias", False),
        hidden_act=keys.text("hidden_activation", "gelu_pytorch_tanh"),
        windows=windows,
        kv_shapes=_kv_shapes(keys, windows),
        kv_sources=sources,
        inner_sizes=inner_sizes,
        values_are_keys=keys.flag("attention_k_eq_v", False),
        pad_token_id=keys.integer("pad_token_id", 0, low=0, high=sizes["vocab_size"] - 1),
        num_experts=num_experts,
        experts_per_token=keys.integer("top_k_experts", high=num_experts) if num_experts else 0,
        expert_size=keys.integer("moe_intermediate_size") if num_experts else 0,
        normalised=True,
        logit_soft_cap=keys.number("final_logit_softcapping", None),
        **input_fields(keys, keys.integer("hidden_size_per_layer_input", INPUT_SIZE, low=0)),
    )


def read_unified(keys: MetadataKeys) -> ModelConfig:
    """Read the keys of config.json of the models without inputs for each layer and without
    experts, which take pictures and sound without encoders."""
    own = {"hidden_size_per_layer_input": 0, "enable_moe_block": False}
    stated = {name: value for name, value in keys.values.items() if value is not None}
    values = {"sliding_window": UNIFIED_WINDOW, **stated, **own}
    config = read_json(MetadataKeys(values, keys.source))
    return replace(config, architecture=UNIFIED)


def input_fields(keys: MetadataKeys, size: int) -> dict[str, Any]:
    """Read the fields of `Gemma4Config` about inputs for each layer."""
    return {
        "layer_input_size": size,
        "layer_input_vocab": keys.integer("vocab_size_per_layer_input", VOCAB),
        "tables": (TABLE,) if size else (),
    }


def rope_fields(keys: MetadataKeys, missing: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Read the fields of `Gemma4Config` about positions.

    Args:
        missing: the rotary embedding of each type of layer where the file has none.
    """
    stated = keys.inner("rope_parameters").values
    trained, source = json_keys.trained_length(keys), "config.json: rope_parameters"
    whole, local = (
        json_keys.rope_fields_of(
            dict(MetadataKeys(stated, source).inner(kind, default).values),
            source,
            trained,
            default["rope_theta"],
        )
        for kind, default in ((kind, missing[kind]) for kind in (FULL, SLIDING))
    )
    return {
        **whole,
        "local_rope_theta": local["rope_theta"],
        "local_rope_scaling": local["rope_scaling"],
    }


def kv_sources(
    keys: MetadataKeys, windows: tuple[int | None, ...], missing: int = 0
) -> tuple[int, ...]:
    """Read `ModelConfig.kv_sources`: the last layers read those of the last layer of their type
    before them.

    Args:
        missing: the number of those layers where the file has none.
    """
    name, num_layers = "num_kv_shared_layers", len(windows)
    first = num_layers - keys.integer(name, missing, low=0, high=num_layers)
    owners = {window: layer for layer, window in enumerate(windows[:first])}
    if set(windows) - set(owners):
        raise keys.nonsense(
            name, f"so few of {num_layers} layers that each type of layer has one before them"
        )
    return (*range(first), *(owners[window] for window in windows[first:]))


def _kv_shapes(keys: MetadataKeys, windows: tuple[int | None, ...]) -> tuple[KvShape, ...]:
    """Read `ModelConfig.kv_shapes`. Published files have keys for all layers that see the whole
    context; transformers 5 also writes an entry for each layer."""
    own = keys.integer("num_key_value_heads"), keys.integer("head_dim", HEAD_DIM)
    heads = own[0]
    if keys.flag("attention_k_eq_v", False):
        heads = keys.integer("num_global_key_value_heads", heads)
    of_full = heads, keys.integer("global_head_dim", GLOBAL_HEAD_DIM)
    shapes = [KvShape(*(of_full if window is None else own)) for window in windows]
    if keys.values.get("per_layer_config") is None:
        return tuple(shapes)
    entries = keys.inner("per_layer_config")
    shapes = [KvShape(*own)] * len(windows)
    for name in entries.values:
        entry, layer = entries.inner(name), str(name)  # such as "05", or a number
        if not layer.isdecimal() or int(layer) >= len(windows):
            raise keys.nonsense("per_layer_config", f"of layers below {len(windows)}")
        shapes[int(layer)] = KvShape(
            entry.integer("num_key_value_heads", own[0]), entry.integer("head_dim", own[1])
        )
    return tuple(shapes)


def read_gguf(keys: GgufKeys) -> ModelConfig:
    """Read the keys of a GGUF file. Only sliding layers have values' projections if keys give the
    values of the others."""
    divisors = keys.divisors.get(ROPE_DIVISORS)
    layer_types = gguf_layer_types(keys)
    heads, inner = (
        of_layers(keys, name) for name in ("attention.head_count_kv", "feed_forward_length")
    )
    sizes = {
        SLIDING: keys.integer(keys.own("attention.key_length_swa")),
        FULL: keys.integer(keys.own("attention.key_length")),
    }
    names = {
        "num_kv_shared_layers": "attention.shared_kv_layers",
        "hidden_size_per_layer_input": "embedding_length_per_layer_input",
        "top_k_experts": "expert_used_count",
        "final_logit_softcapping": "final_logit_softcapping",
    }
    full = layer_types.index(FULL) if FULL in layer_types else 0
    found = as_json(
        keys,
        names,
        layer_types=layer_types,
        intermediate_size=inner[0],
        use_double_wide_mlp=inner[-1] == 2 * inner[0],
        num_key_value_heads=heads[0],
        head_dim=sizes[SLIDING],
        per_layer_config={
            layer: {"num_key_value_heads": heads[layer], "head_dim": sizes[kind]}
            for layer, kind in enumerate(layer_types)
        },
        attention_k_eq_v=f"blk.{full}.attn_v.weight" not in keys.shapes,
        enable_moe_block=keys.integer(keys.own("expert_count"), 0, low=0) > 0,
        vocab_size_per_layer_input=gguf_input_vocab(keys),
        rope_parameters=gguf_ropes(keys)
        | {
            FULL: {
                "rope_type": "proportional",
                "rope_theta": rope_base(keys, keys.own("rope.freq_base"), 1e6),
                "partial_rotary_factor": 1.0
                if divisors is None
                else float(np.mean(divisors == 1.0)),
            }
        },
    )
    return read_json(found)


def gguf_layer_types(keys: GgufKeys) -> list[str]:
    """Return the type of each layer."""
    name = keys.own("attention.sliding_window_pattern")
    slides, num_layers = keys.values.get(name), keys.integer(keys.own("block_count"))
    if (
        not isinstance(slides, list)
        or len(slides) != num_layers
        or not all(isinstance(one, bool) for one in slides)
    ):
        raise keys.nonsense(name, f"a list of {num_layers} values true or false, one per layer")
    return [SLIDING if one else FULL for one in slides]


def gguf_ropes(keys: GgufKeys) -> dict[str, Any]:
    """Return the plain rotary embedding of each type of layer, as config.json has them."""
    names = {FULL: ("rope.freq_base", 1e6), SLIDING: ("rope.freq_base_swa", 1e4)}
    return {
        kind: {"rope_type": "default", "rope_theta": rope_base(keys, keys.own(name), base)}
        for kind, (name, base) in names.items()
    }


def gguf_input_vocab(keys: GgufKeys) -> int | None:
    """Return the number of tokens that have inputs for each layer."""
    return keys.shapes.get("per_layer_token_embd.weight", (None,))[0]


def norm_of(config: Gemma4Config, size: int | None = None) -> RmsNorm:
    """Build a norm with the configuration's epsilon."""
    return RmsNorm(size or config.hidden_size, config.rms_norm_eps)


FAMILIES = (
    Family(
        architecture=ARCHITECTURE,
        model_type="gemma4_text",
        create=create,
        read_json=read_json,
        gguf="gemma4",
        read_gguf=read_gguf,
        gguf_tensors=GGUF_TENSORS
        | {
            "layer_output_scale.weight": "layer_scalar",
            "ffn_gate_inp": "router.proj",
            "ffn_gate_inp.scale.": "router.norm.weight",
            "ffn_down_exps.scale.": "router.per_expert_scale",
            "ffn_gate_exps": "experts.*.gate_proj",
            "ffn_up_exps": "experts.*.up_proj",
            "ffn_gate_up_exps": "experts.*.gate_up_proj",
            "ffn_down_exps": "experts.*.down_proj",
            "post_ffw_norm_1": "post_feedforward_layernorm_1",
            "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
            "post_ffw_norm_2": "post_feedforward_layernorm_2",
        },
    ),
    Family(
        architecture=UNIFIED,
        model_type="gemma4_unified_text",
        create=create,
        read_json=read_unified,
    ),
)
