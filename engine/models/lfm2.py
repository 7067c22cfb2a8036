"""LFM2 and its mixtures: most layers convolve over a few positions between two gates, the others
attend.

A convolution keeps its last inputs of a text and no other state. Report: Liquid AI 2025,
arXiv:2511.23404.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from engine.models import gguf_keys, json_keys
from engine.models.causal_lm import CausalLM
from engine.models.config import MAX_LAYERS, ModelConfig
from engine.models.decoder import Attention, Decoder, sparse_mlp
from engine.models.experts_config import MAX_EXPERTS, ExpertsConfig, gguf_expert_fields
from engine.models.family import Family
from engine.models.forward_context import ForwardContext
from engine.models.gguf_keys import GgufKeys
from engine.models.json_keys import FULL
from engine.models.layers.experts import Scores, SparseMlp
from engine.models.layers.linear import Linear, Shard
from engine.models.layers.mlp import GatedMlp, MlpNames
from engine.models.layers.norm import RmsNorm
from engine.models.layers.rotary import Rotation
from engine.models.layers.short_conv import ShortConv
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys
from engine.models.recurrent_config import RecurrentConfig, RecurrentShapes
from engine.models.rope_keys import rope_base
from kernels import mul

DENSE, MIXTURE = "Lfm2ForCausalLM", "Lfm2MoeForCausalLM"
CONV = "conv"
NAMES = MlpNames(gate="w1", up="w3", down="w2")
EXPERT_BIAS = "exp_probs_b.bias"
"""The name of the experts' bias in a GGUF file's layer."""
GGUF_TENSORS = {
    "attn_norm": "operator_norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.out_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "shortconv.in_proj": "conv.in_proj",
    "shortconv.conv": "conv.conv",
    "shortconv.out_proj": "conv.out_proj",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3",
    "ffn_down": "feed_forward.w2",
    "ffn_gate_inp": "feed_forward.gate",
    "exp_probs_b": "feed_forward.exp_probs_b",
    "ffn_gate_exps": "feed_forward.experts.*.w1",
    "ffn_up_exps": "feed_forward.experts.*.w3",
    "ffn_down_exps": "feed_forward.experts.*.w2",
}
ROPE_BASE = 1e6
"""The base of the wavelengths where a file lacks it."""
_RENAMED = {
    "embedding_norm.": "norm.",
    ".q_layernorm.": ".q_norm.",
    ".k_layernorm.": ".k_norm.",
}
"""Parts of names in checkpoints, and the model's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lfm2Config(RecurrentConfig):
    """LFM2's configuration."""

    conv_bias: bool

    def tensor_name(self, name: str) -> str:
        """See `ModelConfig.tensor_name`."""
        for stored, own in _RENAMED.items():
            name = name.replace(stored, own)
        return RecurrentConfig.tensor_name(self, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lfm2MoeConfig(ExpertsConfig, Lfm2Config):
    """The configuration of LFM2's mixtures."""


class GatedConv(nn.Module):
    """A short convolution whose inputs and results are multiplied by gates, which come with the
    inputs."""

    def __init__(self, config: Lfm2Config, layer: int) -> None:
        super().__init__()
        hidden, bias = config.hidden_size, config.conv_bias
        self.in_proj = Linear(hidden, (Shard("in_proj", 3 * hidden),), bias=bias)
        self.conv = ShortConv(hidden, config.shapes.inputs[1] + 1, bias=bias, silu=False)
        self.out_proj = Linear(hidden, (Shard("out_proj", hidden),), bias=bias)
        self._layer = layer

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """Map [T, C] to [T, C]."""
        assert ctx.recurrent is not None
        inputs, _ = ctx.recurrent_states[self._layer]
        before, after, values = self.in_proj(x, ctx).chunk(3, 1)
        mixed = self.conv(mul(before, values), inputs, ctx.recurrent)
        return self.out_proj(mul(after, mixed), ctx)

    __call__ = forward


class Lfm2Layer(nn.Module):
    """A layer with a norm before attention or the convolution, and one before the MLP."""

    def __init__(self, config: Lfm2Config, options: WeightOptions, layer: int) -> None:
        super().__init__()
        self.operator_norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn: Attention | None = None
        self.conv: GatedConv | None = None
        if layer in config.recurrent_layers:
            self.conv = GatedConv(config, layer)
        else:
            norms = tuple(RmsNorm(config.head_dim, config.rms_norm_eps) for _ in range(2))
            self.self_attn = Attention(
                config, options, layer, head_norms=(norms[0], norms[1]), o_name="out_proj"
            )
        self.ffn_norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward = _mlp(config, layer)

    def forward(
        self, x: Tensor, residual: Tensor, rotation: Rotation, ctx: ForwardContext
    ) -> Tensor:
        """See `DecoderLayer.forward`."""
        x = self.operator_norm.add(x, residual, ctx)
        if self.conv is not None:
            x = self.conv(x, ctx)
        else:
            assert self.self_attn is not None
            x = self.self_attn(x, rotation, ctx)
        return self.feed_forward(self.ffn_norm.add(x, residual, ctx), ctx)

    __call__ = forward


def _mlp(config: Lfm2Config, layer: int) -> GatedMlp | SparseMlp:
    if not isinstance(config, Lfm2MoeConfig) or layer in config.plain_layers:
        sizes = config.hidden_size, config.intermediate_size
        return GatedMlp(*sizes, config.hidden_act, names=NAMES)
    return sparse_mlp(config, names=NAMES)


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    assert isinstance(config, Lfm2Config)
    return Decoder(config, options, lambda layer: Lfm2Layer(config, options, layer))


def read_dense(keys: MetadataKeys) -> ModelConfig:
    return Lfm2Config(architecture=DENSE, **_fields(keys, _inner_size(keys)))


def read_mixture(keys: MetadataKeys) -> ModelConfig:
    fields = _fields(keys, keys.integer("intermediate_size"))
    num_experts = keys.integer("num_experts", high=MAX_EXPERTS)
    return Lfm2MoeConfig(
        architecture=MIXTURE,
        **fields,
        num_experts=num_experts,
        experts_per_token=keys.integer("num_experts_per_tok", high=num_experts),
        expert_size=keys.integer("moe_intermediate_size"),
        normalised=keys.flag("norm_topk_prob", True),
        plain_layers=frozenset(range(keys.integer("num_dense_layers", 2, low=0, high=MAX_LAYERS))),
        scores=Scores(
            sigmoid=True,
            bias="expert_bias" if keys.flag("use_expert_bias", True) else None,
            factor=keys.number("routed_scaling_factor", 1.0),
        ),
    )


def _fields(keys: MetadataKeys, inner_size: int) -> dict[str, Any]:
    """Read the fields of `Lfm2Config`, all but `architecture`."""
    tied = keys.flag("tie_embedding", keys.flag("tie_word_embeddings", True))
    renamed = {
        "intermediate_size": inner_size,
        "rms_norm_eps": keys.number("norm_eps", 1e-5),
        "tie_word_embeddings": tied,
    }
    sizes = json_keys.size_fields(MetadataKeys({**keys.values, **renamed}, keys.source))
    kept = keys.integer("conv_L_cache", 3, low=2, high=8) - 1
    return {
        **sizes,
        **json_keys.rope_fields_of(
            json_keys.rope_parameters(keys),
            json_keys.ROPE_SOURCE,
            json_keys.trained_length(keys),
            rope_base(keys, "rope_theta", ROPE_BASE),
        ),
        "conv_bias": keys.flag("conv_bias", False),
        "recurrent_layers": _conv_layers(keys, sizes["num_hidden_layers"]),
        "shapes": RecurrentShapes((sizes["hidden_size"], kept), (0,)),
    }


def _conv_layers(keys: MetadataKeys, num_layers: int) -> tuple[int, ...]:
    """Return the layers that do not attend. Older files list those that do."""
    types = keys.values.get("layer_types")
    if types is None:
        attending = keys.values.get("full_attn_idxs")
        if not isinstance(attending, list):
            raise keys.nonsense("full_attn_idxs", "a list of layer numbers")
        types = [FULL if layer in attending else CONV for layer in range(num_layers)]
    if (
        not isinstance(types, list)
        or len(types) != num_layers
        or any(entry not in (FULL, CONV) for entry in types)
        or FULL not in types
    ):
        raise keys.nonsense(
            "layer_types",
            f"a list of {num_layers} entries, each {FULL} or {CONV}, and one at least {FULL}",
        )
    return tuple(layer for layer, entry in enumerate(types) if entry == CONV)


def _inner_size(keys: MetadataKeys) -> int:
    """Return the inner size of MLPs, which files state before it is adjusted: two thirds of it
    count, rounded up."""
    size: int = keys.integer("block_ff_dim", None) or keys.integer("intermediate_size")
    if not keys.flag("block_auto_adjust_ff_dim", True):
        return size
    multiple: int = keys.integer("block_multiple_of", 256)
    size = int(2 * size // 3 * keys.number("block_ffn_dim_multiplier", 1.0))
    return -(-size // multiple) * multiple


def read_gguf_dense(keys: GgufKeys) -> ModelConfig:
    return Lfm2Config(architecture=DENSE, **_gguf_fields(keys))


def read_gguf_mixture(keys: GgufKeys) -> ModelConfig:
    fields = _gguf_fields(keys, experts=True)
    has_bias = any(name.endswith(EXPERT_BIAS) for name in keys.shapes)
    return Lfm2MoeConfig(
        architecture=MIXTURE,
        **fields,
        **gguf_expert_fields(keys, fields["intermediate_size"]),
        normalised=True,
        plain_layers=frozenset(
            range(keys.integer(keys.own("leading_dense_block_count"), low=0, high=MAX_LAYERS))
        ),
        scores=Scores(sigmoid=True, bias=EXPERT_BIAS if has_bias else None),
    )


def _gguf_fields(keys: GgufKeys, *, experts: bool = False) -> dict[str, Any]:
    """Read the fields of `Lfm2Config`, all but `architecture`. Convolutions have 0 key heads."""
    name, num_layers = keys.own("attention.head_count_kv"), keys.integer(keys.own("block_count"))
    counts: Any = keys.values.get(name)
    numbers = {*counts} - {0} if isinstance(counts, list) and len(counts) == num_layers else ()
    if len(numbers) != 1:
        raise keys.nonsense(
            name, f"a list of {num_layers} entries, 0 or the same number, which is not always 0"
        )
    of_attention = GgufKeys(
        {**keys.values, name: max(numbers)}, keys.source, keys.shapes, keys.divisors
    )
    sizes = gguf_keys.size_fields(of_attention, experts=experts)
    kept = keys.integer(keys.own("shortconv.l_cache"), low=2, high=8) - 1
    return {
        **sizes,
        **gguf_keys.rope_fields(keys),
        "conv_bias": False,
        "recurrent_layers": tuple(layer for layer, count in enumerate(counts) if count == 0),
        "shapes": RecurrentShapes((sizes["hidden_size"], kept), (0,)),
    }


FAMILIES = (
    Family(
        architecture=DENSE,
        model_type="lfm2",
        gguf="lfm2",
        create=create,
        read_json=read_dense,
        read_gguf=read_gguf_dense,
        gguf_tensors=GGUF_TENSORS,
    ),
    Family(
        architecture=MIXTURE,
        model_type="lfm2_moe",
        gguf="lfm2moe",
        create=create,
        read_json=read_mixture,
        read_gguf=read_gguf_mixture,
        gguf_tensors=GGUF_TENSORS,
    ),
)
