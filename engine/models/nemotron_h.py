"""Nemotron-H: each layer is a norm and one part: Mamba 2, attention, an MLP, or experts.

Heads are not rotated, and MLPs have no gates. Source: transformers' `modeling_nemotron_h.py`.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from engine.models import bamba, json_keys
from engine.models.bamba import LINEAR, Mamba2Config, layer_kinds
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.decoder import Attention, Decoder
from engine.models.experts_config import MAX_EXPERTS, ExpertsConfig
from engine.models.family import Family
from engine.models.forward_context import ForwardContext
from engine.models.gguf_keys import LAYER_TENSORS, GgufKeys, as_json, has, of_layers
from engine.models.json_keys import FULL
from engine.models.layers.experts import Experts, Router, Scores
from engine.models.layers.linear import Linear, Shard
from engine.models.layers.mamba2 import Mamba2, shapes
from engine.models.layers.mlp import GatedMlp, MlpNames
from engine.models.layers.norm import RmsNorm
from engine.models.layers.rotary import Rotation
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys
from engine.models.wrapped_names import unwrapped

ARCHITECTURE = "NemotronHForCausalLM"
MLP, MIXTURE = "mlp", "moe"
LETTERS = {"M": LINEAR, "*": FULL, "-": MLP, "E": MIXTURE}
"""The letters of `hybrid_override_pattern`."""
NAMES = MlpNames(gate=None, up="up_proj", down="down_proj")
EXPERTS, CHOSEN, EXPERT_SIZE = 8, 2, 7688
"""The numbers of missing keys."""
HEAD_DIM = 128
"""The size of a head where a file lacks it."""
_DECODER = "language_model."
"""The beginning of the decoder's names in models that hear and see."""
_OWN_NAMES = {
    "backbone.": "model.",
    "model.embeddings.": "model.embed_tokens.",
    "model.norm_f.": "model.norm.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NemotronConfig(Mamba2Config):
    """Nemotron-H's configuration."""

    def tensor_name(self, name: str) -> str:
        """See `ModelConfig.tensor_name`."""
        if self.is_wrapped:
            if not name.startswith(_DECODER):
                return unwrapped(name)
            name = name.removeprefix(_DECODER)
        for stored, own in _OWN_NAMES.items():
            if name.startswith(stored):
                name = own + name.removeprefix(stored)
        return name


@dataclass(frozen=True, slots=True, kw_only=True)
class NemotronExpertsConfig(NemotronConfig, ExpertsConfig):
    """A configuration with experts in some layers."""

    shared_size: int
    """Inner size of the expert that all tokens pass."""
    latent_size: int | None
    """The size of the inputs and outputs of the chosen experts; None for the hidden size."""
    routed_scale: float
    """Factor of what the chosen experts add."""


class NemotronMixture(nn.Module):
    """Experts that a router chooses, between projections if they have a size of their own, and one
    that all tokens pass."""

    def __init__(self, config: NemotronExpertsConfig) -> None:
        super().__init__()
        hidden, act, bias = config.hidden_size, config.hidden_act, config.mlp_bias
        latent = config.latent_size or hidden
        self.gate = Router(
            "gate",
            hidden,
            config.num_experts,
            config.experts_per_token,
            normalised=config.normalised,
            scores=Scores(
                sigmoid=True, bias="gate.e_score_correction_bias", factor=config.routed_scale
            ),
        )
        self.experts = Experts(config.num_experts, latent, config.expert_size, act, names=NAMES)
        self.shared_experts = GatedMlp(hidden, config.shared_size, act, bias=bias, names=NAMES)
        self.fc1_latent_proj: Linear | None = None
        self.fc2_latent_proj: Linear | None = None
        if config.latent_size is not None:
            self.fc1_latent_proj = Linear(hidden, (Shard("fc1_latent_proj", latent),), bias=bias)
            self.fc2_latent_proj = Linear(latent, (Shard("fc2_latent_proj", hidden),), bias=bias)

    def forward(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        """Map [T, C] to [T, C]."""
        inputs = x if self.fc1_latent_proj is None else self.fc1_latent_proj(x, ctx)
        found = self.experts.mix(inputs, self.gate.choose(x), ctx)
        if self.fc2_latent_proj is not None:
            found = self.fc2_latent_proj(found, ctx)
        return found.add_(self.shared_experts(x, ctx))

    __call__ = forward


class NemotronLayer(nn.Module):
    """A norm and one part."""

    def __init__(self, config: NemotronConfig, options: WeightOptions, layer: int) -> None:
        super().__init__()
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.mixer: Mamba2 | Attention | GatedMlp | NemotronMixture
        if layer in config.recurrent_layers:
            self.mixer = Mamba2(config, layer, **config.mixer)
        elif layer in (config.attending_layers or ()):
            bias = config.attention_bias
            self.mixer = Attention(config, options, layer, qkv_bias=bias, o_bias=bias)
        elif isinstance(config, NemotronExpertsConfig) and layer not in config.plain_layers:
            self.mixer = NemotronMixture(config)
        else:
            sizes = config.hidden_size, config.intermediate_size
            self.mixer = GatedMlp(*sizes, config.hidden_act, bias=config.mlp_bias, names=NAMES)

    def forward(
        self, x: Tensor, residual: Tensor, rotation: Rotation, ctx: ForwardContext
    ) -> Tensor:
        """See `DecoderLayer.forward`."""
        x = self.norm.add(x, residual, ctx)
        if isinstance(self.mixer, Attention):
            return self.mixer(x, rotation, ctx)
        return self.mixer(x, ctx)

    __call__ = forward


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    assert isinstance(config, NemotronConfig)
    return Decoder(config, options, lambda layer: NemotronLayer(config, options, layer))


def read_json(keys: MetadataKeys) -> ModelConfig:
    """Read the keys of config.json. Unlike in transformers, dt is at least `time_step_limit`, as in
    the original code, and not `time_step_min` in prompts alone."""
    keys = _with_kinds(keys)
    kinds = layer_kinds(keys, "layers_block_type", *LETTERS.values())
    sizes = json_keys.size_fields(
        MetadataKeys(
            {
                **keys.values,
                "num_hidden_layers": len(kinds),
                "rms_norm_eps": keys.number("layer_norm_epsilon", 1e-5),
            },
            keys.source,
        ),
        head_dim=keys.integer("attention_head_dim", HEAD_DIM),
    )
    num_heads, num_groups = json_keys.heads_and_groups(
        keys, ("mamba_num_heads", 128), ("n_groups", 8)
    )
    bias = keys.flag("use_bias", False)
    fields: dict[str, Any] = dict(
        architecture=ARCHITECTURE,
        **sizes,
        **json_keys.bias_fields(keys),
        max_position_embeddings=json_keys.trained_length(keys),
        rope_scaling={"rope_type": "none"},
        hidden_act=keys.text("mlp_hidden_act", "relu2"),
        recurrent_layers=_layers_of(LINEAR, kinds),
        attending_layers=_layers_of(FULL, kinds),
        shapes=shapes(
            num_heads=num_heads,
            head_dim=keys.integer("mamba_head_dim", 64),
            state_size=keys.integer("ssm_state_size", 128),
            num_groups=num_groups,
            width=json_keys.conv_width(keys, "conv_kernel"),
        ),
        mixer={
            "bias": bias,
            "out_bias": bias,
            "conv_bias": keys.flag("use_conv_bias", True),
            "dt_limits": json_keys.dt_limits(keys),
        },
    )
    if MIXTURE not in kinds:
        return NemotronConfig(**fields)
    plain = frozenset(range(len(kinds))) - frozenset(_layers_of(MIXTURE, kinds))
    return NemotronExpertsConfig(**fields, **_expert_fields(keys), plain_layers=plain)


def read_gguf(keys: GgufKeys) -> ModelConfig:
    kv_heads, inner = (
        of_layers(keys, name) for name in ("attention.head_count_kv", "feed_forward_length")
    )
    num_experts = keys.integer(keys.own("expert_count"), 0, low=0)
    drafting = keys.integer(keys.own("nextn_predict_layers"), 0, low=0)
    parts = MIXTURE if num_experts else MLP
    kinds = [
        FULL if attends else parts if size else LINEAR
        for attends, size in zip(kv_heads, inner, strict=True)
    ]
    names = {
        "conv_kernel": "ssm.conv_kernel",
        "ssm_state_size": "ssm.state_size",
        "n_groups": "ssm.group_count",
        "mamba_num_heads": "ssm.time_step_rank",
        "attention_head_dim": "attention.key_length",
        "n_routed_experts": "expert_count",
        "n_group": "expert_group_count",
        "norm_topk_prob": "expert_weights_norm",
        "routed_scaling_factor": "expert_weights_scale",
        "moe_shared_expert_intermediate_size": "expert_shared_feed_forward_length",
        "moe_latent_size": "moe_latent_size",
    }
    eps = keys.number(keys.own("attention.layer_norm_rms_epsilon"), None)
    num_heads = keys.integer(keys.own("ssm.time_step_rank"))
    found = as_json(
        keys,
        names,
        layers_block_type=kinds[: len(kinds) - drafting],
        intermediate_size=max(inner),
        num_key_value_heads=max(kv_heads),
        layer_norm_epsilon=eps or keys.number(keys.own("attention.layer_norm_epsilon")),
        mamba_head_dim=keys.integer(keys.own("ssm.inner_size")) // num_heads,
        use_conv_bias=has(keys, "ssm_conv1d.bias"),
        use_bias=has(keys, "ssm_in.bias"),
        mlp_bias=has(keys, "ffn_up.bias"),
        rope_parameters=None,
    )
    return read_json(found)


def _expert_fields(keys: MetadataKeys) -> dict[str, Any]:
    num_experts = keys.integer("n_routed_experts", EXPERTS, high=MAX_EXPERTS)
    if keys.integer("n_group", 1) != 1:
        raise keys.nonsense("n_group", "1, as routing in groups is not supported here")
    return {
        "num_experts": num_experts,
        "experts_per_token": keys.integer("num_experts_per_tok", CHOSEN, high=num_experts),
        "expert_size": keys.integer("moe_intermediate_size", EXPERT_SIZE),
        "normalised": keys.flag("norm_topk_prob", True),
        "shared_size": keys.integer("moe_shared_expert_intermediate_size", EXPERT_SIZE),
        "latent_size": keys.integer("moe_latent_size", None),
        "routed_scale": keys.number("routed_scaling_factor", 1.0),
    }


def _with_kinds(keys: MetadataKeys) -> MetadataKeys:
    """Return keys with a list of the layers' kinds, for which most files have a text."""
    pattern = keys.text("hybrid_override_pattern", None)
    if pattern is None or keys.values.get("layers_block_type") is not None:
        return keys
    if not {*pattern} <= {*LETTERS}:
        raise keys.nonsense("hybrid_override_pattern", f"a text of {' '.join(LETTERS)}")
    kinds = [LETTERS[letter] for letter in pattern]
    return MetadataKeys({**keys.values, "layers_block_type": kinds}, keys.source)


def _layers_of(kind: str, kinds: list[str]) -> tuple[int, ...]:
    return tuple(layer for layer, one in enumerate(kinds) if one == kind)


FAMILIES = (
    Family(
        architecture=ARCHITECTURE,
        model_type="nemotron_h",
        create=create,
        read_json=read_json,
        gguf="nemotron_h",
        gguf_others=("nemotron_h_moe",),
        read_gguf=read_gguf,
        gguf_tensors={
            own: name.replace("mamba.", "mixer.").replace("self_attn.", "mixer.")
            for own, name in (LAYER_TENSORS | bamba.GGUF_TENSORS).items()
        }
        | {
            "attn_norm": "norm",
            "ffn_up": "mixer.up_proj",
            "ffn_down": "mixer.down_proj",
            "ffn_gate_inp": "mixer.gate",
            "exp_probs_b.bias": "mixer.gate.e_score_correction_bias",
            "ffn_up_exps": "mixer.experts.*.up_proj",
            "ffn_down_exps": "mixer.experts.*.down_proj",
            "ffn_up_shexp": "mixer.shared_experts.up_proj",
            "ffn_down_shexp": "mixer.shared_experts.down_proj",
            "ffn_latent_down": "mixer.fc1_latent_proj",
            "ffn_latent_up": "mixer.fc2_latent_proj",
        },
        gguf_original=bamba.gguf_original,
    ),
)
