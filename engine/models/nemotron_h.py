"""Nemotron-H: each layer is a norm and one part: Mamba 2, attention or an MLP.

Heads are not rotated, and MLPs have no gates. Source: transformers' `modeling_nemotron_h.py`.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from engine.models import json_keys
from engine.models.bamba import LINEAR, Mamba2Config, layer_kinds
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.decoder import Attention, Decoder
from engine.models.family import Family
from engine.models.forward_context import ForwardContext
from engine.models.json_keys import FULL
from engine.models.layers.mamba2 import Mamba2, shapes
from engine.models.layers.mlp import GatedMlp, MlpNames
from engine.models.layers.norm import RmsNorm
from engine.models.layers.rotary import Rotation
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys

ARCHITECTURE = "NemotronHForCausalLM"
MLP = "mlp"
LETTERS = {"M": LINEAR, "*": FULL, "-": MLP}
"""The letters of `hybrid_override_pattern`."""
NAMES = MlpNames(gate=None, up="up_proj", down="down_proj")
HEAD_DIM = 128
"""The size of a head where a file lacks it."""
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
        for stored, own in _OWN_NAMES.items():
            if name.startswith(stored):
                name = own + name.removeprefix(stored)
        return name


class NemotronLayer(nn.Module):
    """A norm and one part."""

    def __init__(self, config: NemotronConfig, options: WeightOptions, layer: int) -> None:
        super().__init__()
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.mixer: Mamba2 | Attention | GatedMlp
        if layer in config.recurrent_layers:
            self.mixer = Mamba2(config, layer, **config.mixer)
        elif layer in config.attending_layers:
            bias = config.attention_bias
            self.mixer = Attention(config, options, layer, qkv_bias=bias, o_bias=bias)
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
    kinds = layer_kinds(keys, "layers_block_type", MLP)
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
    num_heads, num_groups = keys.integer("mamba_num_heads", 128), keys.integer("n_groups", 8)
    if num_heads % num_groups:
        raise keys.nonsense("mamba_num_heads", f"a multiple of n_groups, {num_groups}")
    bias = keys.flag("use_bias", False)
    return NemotronConfig(
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
            width=keys.integer("conv_kernel", 4, low=2, high=8),
        ),
        mixer={
            "bias": bias,
            "out_bias": bias,
            "conv_bias": keys.flag("use_conv_bias", True),
            "dt_limits": json_keys.dt_limits(keys),
        },
    )


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
    Family(architecture=ARCHITECTURE, model_type="nemotron_h", create=create, read_json=read_json),
)
