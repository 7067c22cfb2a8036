"""Granite 4: most layers keep a state by Mamba 2, the others attend; an MLP follows in each, and
in larger models experts beside it.

Embeddings, scores, what layers add, and logits are multiplied by factors of the configuration. The
residual stream is kept divided by the factor of what layers add. Layers then add without it, and
norms give the same result if their epsilon is divided by its square. Source: transformers'
`modeling_granitemoehybrid.py`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from engine.models import bamba, json_keys
from engine.models.bamba import LINEAR, Mamba2Config, gguf_mamba, layer_kinds, mamba_fields
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.decoder import Attention, Decoder, sparse_mlp
from engine.models.experts_config import MAX_EXPERTS, ExpertsConfig
from engine.models.family import Family
from engine.models.forward_context import ForwardContext
from engine.models.gguf_keys import LAYER_TENSORS, GgufKeys, as_json, of_layers, unpaired_rows
from engine.models.json_keys import FULL
from engine.models.layers.experts import SparseMlp
from engine.models.layers.mamba2 import Mamba2
from engine.models.layers.mlp import GatedMlp, MlpNames
from engine.models.layers.norm import RmsNorm
from engine.models.layers.rotary import Rotation
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys

ARCHITECTURE = "GraniteMoeHybridForCausalLM"
EXPERTS, CHOSEN = 8, 2
"""The numbers of experts and of chosen experts where a file lacks them."""
SHARED = MlpNames("gate_proj", "up_proj", "output_linear", fused="input_linear")
_MIXTURE = re.compile(r"(.+\.block_sparse_moe)\.(?:(input|output)_linear|router\.layer)\.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraniteConfig(Mamba2Config):
    """Granite 4's configuration without experts; `intermediate_size` is that of the MLP."""

    embedding_scale: float
    score_scale: float
    layer_scale: float
    """Factor of what a layer adds."""
    logit_scale: float
    fuses_mlp: bool = True
    """Whether the checkpoint has gate and up in one tensor."""

    @property
    def stream_eps(self) -> float:
        """The epsilon of norms of the residual stream."""
        return self.rms_norm_eps / self.layer_scale**2


@dataclass(frozen=True, slots=True, kw_only=True)
class GraniteExpertsConfig(GraniteConfig, ExpertsConfig):
    """Granite 4's configuration with experts."""

    def parts_of(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each expert's part of a stacked tensor."""
        found = _MIXTURE.fullmatch(name)
        if found is None:
            yield name, tensor
            return
        path, layer = found.groups()
        if layer is None:
            yield f"{path}.gate.weight", tensor
            return
        for number, part in enumerate(tensor):
            expert = f"{path}.experts.{number}"
            if layer == "output":
                yield f"{expert}.down_proj.weight", part
            else:
                gate, up = part.tensor_split(2)
                yield f"{expert}.gate_proj.weight", gate
                yield f"{expert}.up_proj.weight", up


class GraniteLayer(nn.Module):
    """A layer with a norm before Mamba or attention, and one before the MLP and the experts."""

    def __init__(self, config: GraniteConfig, options: WeightOptions, layer: int) -> None:
        super().__init__()
        bias = config.attention_bias
        self.input_layernorm = _norm(config)
        self.mamba: Mamba2 | None = None
        self.self_attn: Attention | None = None
        if layer in config.recurrent_layers:
            self.mamba = Mamba2(config, layer, **config.mixer)
        else:
            self.self_attn = Attention(
                config, options, layer, qkv_bias=bias, o_bias=bias, scale=config.score_scale
            )
        self.post_attention_layernorm = _norm(config)
        sizes = config.hidden_size, config.intermediate_size
        self.shared_mlp = GatedMlp(*sizes, config.hidden_act, fused=config.fuses_mlp, names=SHARED)
        self.block_sparse_moe: SparseMlp | None = None
        if isinstance(config, GraniteExpertsConfig):
            self.block_sparse_moe = sparse_mlp(config)

    def forward(
        self, x: Tensor, residual: Tensor, rotation: Rotation, ctx: ForwardContext
    ) -> Tensor:
        """See `DecoderLayer.forward`."""
        x = self.input_layernorm.add(x, residual, ctx)
        if self.mamba is not None:
            x = self.mamba(x, ctx)
        else:
            assert self.self_attn is not None
            x = self.self_attn(x, rotation, ctx)
        x = self.post_attention_layernorm.add(x, residual, ctx)
        found = self.shared_mlp(x, ctx)
        return found if self.block_sparse_moe is None else found + self.block_sparse_moe(x, ctx)

    __call__ = forward


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    assert isinstance(config, GraniteConfig)
    return Decoder(
        config,
        options,
        lambda layer: GraniteLayer(config, options, layer),
        norm=_norm(config),
        stream_scale=config.embedding_scale / config.layer_scale,
        logit_scale=config.logit_scale,
    )


def read_json(keys: MetadataKeys) -> ModelConfig:
    """Read the keys of config.json. `intermediate_size` is that of an expert there."""
    sizes = json_keys.size_fields(keys)
    expert_size = sizes["intermediate_size"]
    sizes["intermediate_size"] = keys.integer("shared_intermediate_size", 1024)
    kinds = layer_kinds(keys, "layer_types", LINEAR, FULL)
    if len(kinds) != sizes["num_hidden_layers"]:
        raise keys.nonsense("layer_types", f"a list of {sizes['num_hidden_layers']} entries")
    fields = (
        sizes
        | _rope_fields(keys)
        | mamba_fields(keys)
        | {
            "architecture": ARCHITECTURE,
            "attention_bias": keys.flag("attention_bias", False),
            "recurrent_layers": tuple(layer for layer, kind in enumerate(kinds) if kind == LINEAR),
            "embedding_scale": keys.number("embedding_multiplier", 1.0),
            "score_scale": keys.number("attention_multiplier", 1.0),
            "layer_scale": keys.number("residual_multiplier", 1.0),
            "logit_scale": 1 / keys.number("logits_scaling", 1.0),
        }
    )
    num_experts = keys.integer("num_local_experts", EXPERTS, low=0, high=MAX_EXPERTS)
    if not num_experts:
        return GraniteConfig(**fields)
    return GraniteExpertsConfig(
        **fields,
        num_experts=num_experts,
        experts_per_token=keys.integer("num_experts_per_tok", CHOSEN, high=num_experts),
        expert_size=expert_size,
        normalised=True,
    )


def read_gguf(keys: GgufKeys) -> ModelConfig:
    """Read the keys of a GGUF file. In those of models named `granite`, all layers attend."""
    is_hybrid = keys.architecture == "granitehybrid"
    kv_heads = of_layers(keys, "attention.head_count_kv")
    names = {
        "shared_intermediate_size": "expert_shared_feed_forward_length"
        if keys.values.get(keys.own("expert_shared_feed_forward_length"))
        else "feed_forward_length",
        "embedding_multiplier": "embedding_scale",
        "attention_multiplier": "attention.scale",
        "residual_multiplier": "residual_scale",
        "logits_scaling": "logit_scale",
    }
    is_rotated = keys.flag(keys.own("rope.scaling.finetuned"), not is_hybrid)
    heads = GgufKeys(
        {**keys.values, keys.own("attention.head_count_kv"): max(kv_heads)},
        keys.source,
        keys.shapes,
        keys.divisors,
    )
    found = as_json(
        heads,
        names,
        **(gguf_mamba(keys) if is_hybrid else {}),
        num_local_experts=keys.integer(keys.own("expert_count"), 0, low=0),
        layer_types=[FULL if number else LINEAR for number in kv_heads],
        position_embedding_type="rope" if is_rotated else "nope",
    )
    config = read_json(found)
    assert isinstance(config, GraniteConfig)
    return replace(config, fuses_mlp=False)


def gguf_original(config: ModelConfig, name: str, stored: Tensor) -> Tensor:
    """Undo what llama.cpp's converter did to a tensor."""
    return unpaired_rows(config, name, bamba.gguf_original(config, name, stored))


def _rope_fields(keys: MetadataKeys) -> dict[str, Any]:
    """Read the fields about positions. Most models of the family do not rotate heads."""
    kind = keys.text("position_embedding_type", None)
    if kind not in (None, "nope", "rope"):
        raise keys.nonsense("position_embedding_type", "rope or nope")
    fields = json_keys.rope_fields(keys)
    return fields if kind == "rope" else fields | {"rope_scaling": {"rope_type": "none"}}


def _norm(config: GraniteConfig) -> RmsNorm:
    return RmsNorm(config.hidden_size, config.stream_eps)


FAMILIES = (
    Family(
        architecture=ARCHITECTURE,
        model_type="granitemoehybrid",
        create=create,
        read_json=read_json,
        gguf="granitehybrid",
        gguf_others=("granite",),
        read_gguf=read_gguf,
        gguf_tensors=LAYER_TENSORS
        | bamba.GGUF_TENSORS
        | {
            "ffn_gate_inp": "block_sparse_moe.gate",
            "ffn_gate_exps": "block_sparse_moe.experts.*.gate_proj",
            "ffn_up_exps": "block_sparse_moe.experts.*.up_proj",
            "ffn_down_exps": "block_sparse_moe.experts.*.down_proj",
        }
        | {
            f"ffn_{part}{kind}": f"shared_mlp.{name}"
            for part, name in zip(("gate", "up", "down"), SHARED[:3], strict=True)
            for kind in ("", "_shexp")
        },
        gguf_original=gguf_original,
    ),
)
