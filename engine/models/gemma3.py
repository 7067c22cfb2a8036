"""Gemma 3's text models, in which most layers have a window and every sixth sees the whole context.

Differences from Llama: query and key heads are normalised, attention and MLP are also followed by a
norm, norms store their weights minus 1, the embedding is scaled, and sliding layers have a rotary
base of their own. Paper: Gemma Team 2025, arXiv:2503.19786.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from engine.errors import UnsupportedArchitecture
from engine.models import gguf_keys, json_keys
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.decoder import Attention, Decoder, gated_mlp, rope_of
from engine.models.family import Family
from engine.models.forward_context import ForwardContext
from engine.models.gguf_keys import LAYER_TENSORS, GgufKeys
from engine.models.json_keys import FULL, SLIDING
from engine.models.layers.norm import RmsNorm
from engine.models.layers.rotary import Rope, Rotation
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys
from engine.models.rope_keys import rope_base

ARCHITECTURE = "Gemma3ForCausalLM"
HEAD_DIM = 256
WINDOW = 4096
PERIOD = 6
"""One layer in this many sees the whole context."""
GLOBAL_BASE, LOCAL_BASE = 1e6, 1e4
ACTIVATION = "gelu_pytorch_tanh"
LAYERS_OF_27B = 62
"""The number of layers of the 27B model, the only size whose scores are not scaled by the head
size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemma3Config(ModelConfig):
    """Gemma 3's configuration. The base class's rope is that of layers that see the whole
    context."""

    score_scale: float
    """Factor of attention scores."""
    local_rope_theta: float
    local_rope_scaling: dict[str, Any] | None = None
    """Scaling of the sliding layers' rope."""
    norm_offset: float
    """The value to add to norm weights."""
    logit_soft_cap: float | None = None


class Gemma3Layer(nn.Module):
    """A layer with norms before and after attention, and before and after the MLP."""

    def __init__(self, config: Gemma3Config, options: WeightOptions, layer: int) -> None:
        super().__init__()
        self.input_layernorm = _norm(config)
        self.self_attn = Attention(
            config,
            options,
            layer,
            qkv_bias=config.attention_bias,
            o_bias=config.attention_bias,
            head_norms=(_norm(config, config.head_dim), _norm(config, config.head_dim)),
            scale=config.score_scale,
        )
        self.post_attention_layernorm = _norm(config)
        self.pre_feedforward_layernorm = _norm(config)
        self.mlp = gated_mlp(config)
        self.post_feedforward_layernorm = _norm(config)

    def forward(
        self, x: Tensor, residual: Tensor, rotation: Rotation, ctx: ForwardContext
    ) -> Tensor:
        """See `DecoderLayer.forward`."""
        x = self.self_attn(self.input_layernorm.add(x, residual, ctx), rotation, ctx)
        x = self.post_attention_layernorm(x, ctx)
        x = self.mlp(self.pre_feedforward_layernorm.add(x, residual, ctx), ctx)
        return self.post_feedforward_layernorm(x, ctx)

    __call__ = forward


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    assert isinstance(config, Gemma3Config)
    local = Rope(
        config.head_dim,
        config.local_rope_theta,
        config.max_position_embeddings,
        config.local_rope_scaling,
    )
    return Decoder(
        config,
        options,
        lambda layer: Gemma3Layer(config, options, layer),
        norm=_norm(config),
        ropes=[rope_of(config) if window is None else local for window in config.layer_windows],
        embedding_scale=config.hidden_size**0.5,
        soft_cap=config.logit_soft_cap,
    )


def read_json(keys: MetadataKeys) -> ModelConfig:
    """Read the keys of config.json.

    Raises:
        UnsupportedArchitecture: the model's attention is bidirectional, as in encoders.
    """
    if keys.flag("use_bidirectional_attention", False):
        raise UnsupportedArchitecture("Gemma 3 with bidirectional attention is not supported")
    sizes = json_keys.size_fields(keys, head_dim=HEAD_DIM, tied=True)
    num_layers = sizes["num_hidden_layers"]
    per_type = keys.values.get("rope_parameters") or {}
    if not isinstance(per_type, dict) or not _are_ropes_of_types(per_type):
        raise keys.nonsense("rope_parameters", "an object with an entry for each type of layer")
    # transformers 4 stores both bases at the top level, and a scaling only for the global one.
    whole = per_type.get(FULL) or keys.values.get("rope_scaling") or {}
    local = per_type.get(SLIDING) or {}
    if not isinstance(whole, dict):
        raise keys.nonsense("rope_scaling", "an object")
    trained, source = json_keys.trained_length(keys), "config.json: rope_parameters"
    bases = (
        rope_base(keys, "rope_theta", GLOBAL_BASE),
        rope_base(keys, "rope_local_base_freq", LOCAL_BASE),
    )
    local_rope = json_keys.rope_fields_of(dict(local), source, trained, bases[1])
    return Gemma3Config(
        architecture=ARCHITECTURE,
        **sizes,
        **json_keys.rope_fields_of(dict(whole), source, trained, bases[0]),
        attention_bias=keys.flag("attention_bias", False),
        hidden_act=keys.text("hidden_activation", ACTIVATION),
        windows=json_keys.layer_windows(
            keys,
            keys.integer("sliding_window", WINDOW),
            _layer_types(num_layers, keys.integer("sliding_window_pattern", PERIOD)),
        ),
        score_scale=keys.number("query_pre_attn_scalar", float(HEAD_DIM)) ** -0.5,
        local_rope_theta=local_rope["rope_theta"],
        local_rope_scaling=local_rope["rope_scaling"],
        norm_offset=1.0,
        logit_soft_cap=keys.number("final_logit_softcapping", None),
    )


def read_gguf(keys: GgufKeys) -> ModelConfig:
    """Read the keys of a GGUF file. llama.cpp's converter has added the 1 to the norms; its loader
    supplies the values that the file lacks."""
    sizes = gguf_keys.size_fields(keys)
    window = keys.integer(keys.own("attention.sliding_window"), 0, low=0) or None
    scaled_by = sizes["head_dim"]
    if sizes["num_hidden_layers"] == LAYERS_OF_27B:
        scaled_by = sizes["hidden_size"] // sizes["num_attention_heads"]
    return Gemma3Config(
        architecture=ARCHITECTURE,
        **sizes,
        **gguf_keys.rope_fields(keys),
        **gguf_keys.bias_fields(keys),
        hidden_act=ACTIVATION,
        windows=tuple(
            window if entry == SLIDING else None
            for entry in _gguf_layer_types(keys, sizes["num_hidden_layers"])
        ),
        score_scale=scaled_by**-0.5,
        local_rope_theta=rope_base(keys, keys.own("rope.freq_base_swa"), LOCAL_BASE),
        norm_offset=0.0,
        logit_soft_cap=keys.number(keys.own("final_logit_softcapping"), None),
    )


def _are_ropes_of_types(per_type: dict[str, Any]) -> bool:
    """Whether the dictionary has one rope per type. Other entries, which tools such as GPTQModel
    add, are ignored."""
    known = [per_type[kind] for kind in (FULL, SLIDING) if kind in per_type]
    return bool(known or not per_type) and all(isinstance(one, dict) for one in known)


def _layer_types(num_layers: int, period: int) -> list[str]:
    return [SLIDING if (layer + 1) % period else FULL for layer in range(num_layers)]


def _gguf_layer_types(keys: GgufKeys, num_layers: int) -> list[str]:
    """Return each layer's type. Files have no pattern, its period, or a flag for each layer."""
    key = keys.own("attention.sliding_window_pattern")
    slides = keys.values.get(key)
    if not isinstance(slides, list):
        return _layer_types(num_layers, keys.integer(key, PERIOD))
    if len(slides) != num_layers or not all(isinstance(entry, bool) for entry in slides):
        raise keys.nonsense(
            key, f"a period, or a list of {num_layers} values true or false, one per layer"
        )
    return [SLIDING if entry else FULL for entry in slides]


def _norm(config: Gemma3Config, size: int | None = None) -> RmsNorm:
    return RmsNorm(size or config.hidden_size, config.rms_norm_eps, offset=config.norm_offset)


FAMILIES = (
    Family(
        architecture=ARCHITECTURE,
        model_type="gemma3_text",
        gguf="gemma3",
        create=create,
        read_json=read_json,
        read_gguf=read_gguf,
        gguf_tensors=LAYER_TENSORS
        | {
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
    ),
)
