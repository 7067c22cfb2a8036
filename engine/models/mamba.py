"""Mamba 1, FalconMamba and Mamba 2: every layer keeps a state, and none attends.

FalconMamba normalises the inputs of Mamba 1's scan. Sources: transformers' `modeling_mamba.py`,
`modeling_falcon_mamba.py` and `modeling_mamba2.py`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import UnsupportedArchitecture
from engine.models import bamba
from engine.models.causal_lm import CausalLM
from engine.models.config import MAX_LAYERS, ModelConfig
from engine.models.family import Family
from engine.models.forward_context import ForwardContext
from engine.models.gguf_keys import GgufKeys, as_json, has
from engine.models.json_keys import conv_width, dt_limits, heads_and_groups
from engine.models.layers import mamba1, mamba2
from engine.models.layers.embedding import LmHead, TokenEmbedding
from engine.models.layers.mamba1 import Mamba1
from engine.models.layers.mamba2 import Mamba2
from engine.models.layers.norm import RmsNorm
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys
from engine.models.recurrent_config import RecurrentConfig
from engine.models.rope_keys import MAX_POSITIONS

LONGEST = 1 << 18
"""The tokens of the longest text if the file states no limit. The architecture has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MambaConfig(RecurrentConfig):
    """The configuration of a model in which no layer attends."""

    mixer: dict[str, Any]
    """The arguments of `Mamba1` or `Mamba2`, by the architecture."""

    def tensor_name(self, name: str) -> str:
        """See `ModelConfig.tensor_name`; the authors' own files have another name."""
        return name.replace("backbone.embedding.", "backbone.embeddings.")


class MambaLayer(nn.Module):
    """A mixer behind a norm."""

    def __init__(self, config: MambaConfig, mixer: Mamba1 | Mamba2) -> None:
        super().__init__()
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.mixer = mixer

    def forward(self, x: Tensor, residual: Tensor, ctx: ForwardContext) -> Tensor:
        """Run the layer; the arguments are those of `DecoderLayer.forward`."""
        return self.mixer(self.norm.add(x, residual, ctx), ctx)

    __call__ = forward


class Backbone(nn.Module):
    """Embedding, layers and last norm, named as checkpoints name them."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        of_kind = Mamba2 if config.architecture == "Mamba2ForCausalLM" else Mamba1
        self.embeddings = TokenEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            MambaLayer(config, of_kind(config, layer, **config.mixer))
            for layer in config.recurrent_layers
        )
        self.norm_f = RmsNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, token_ids: Tensor, ctx: ForwardContext) -> Tensor:
        """Map [T] to normalised hidden states, [T, C]."""
        residual = self.embeddings(token_ids, ctx)
        x = torch.zeros_like(residual)
        for layer in self.layers:
            x = layer(x, residual, ctx)
        return self.norm_f.add(x, residual, ctx)

    __call__ = forward


class Mamba(CausalLM):
    """A `Backbone` with its output layer."""

    ends_take_adapters = True

    def __init__(self, config: MambaConfig, options: WeightOptions) -> None:
        super().__init__(config, options)
        self.backbone = Backbone(config)
        self.lm_head = LmHead(self.backbone.embeddings, tied=config.tie_word_embeddings)

    def forward(self, token_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        """See `CausalLM.forward`."""
        return self.backbone(token_ids, ctx)


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    assert isinstance(config, MambaConfig)
    return Mamba(config, options)


def read_json(keys: MetadataKeys, *, architecture: str, tied: bool) -> ModelConfig:
    """Read a configuration.

    Args:
        tied: the value of a missing `tie_word_embeddings`.
    """
    if (act := keys.text("hidden_act", "silu")) not in ("silu", "swish"):
        raise UnsupportedArchitecture(f"hidden_act {act!r} is not supported; it must be silu")
    hidden_size = keys.integer("hidden_size")
    inner = keys.integer("intermediate_size", None)
    if inner is None:
        inner = int(keys.number("expand", 2.0) * hidden_size)
    mixer: dict[str, Any] = {
        "bias": keys.flag("use_bias", False),
        "conv_bias": keys.flag("use_conv_bias", True),
    }
    width = conv_width(keys, "conv_kernel")
    if architecture == "Mamba2ForCausalLM":
        mixer |= {"out_bias": mixer["bias"], "dt_limits": dt_limits(keys)}
        num_heads, num_groups = heads_and_groups(keys, ("num_heads", 128), ("n_groups", 8))
        head_dim = keys.integer("head_dim", 64)
        inner = num_heads * head_dim
        shapes = mamba2.shapes(
            num_heads=num_heads,
            head_dim=head_dim,
            state_size=keys.integer("state_size", 128),
            num_groups=num_groups,
            width=width,
        )
    else:
        rank = keys.values.get("time_step_rank", "auto")
        mixer["rank"] = -(-hidden_size // 16) if rank == "auto" else keys.integer("time_step_rank")
        if architecture == "FalconMambaForCausalLM":
            mixer |= {"norm_eps": keys.number("mixer_rms_eps", 1e-6), "learned_norms": False}
        state_size = keys.integer("state_size", 16)
        shapes = mamba1.shapes(num_channels=inner, state_size=state_size, width=width)
    num_layers = keys.integer("num_hidden_layers", high=MAX_LAYERS)
    return MambaConfig(
        architecture=architecture,
        vocab_size=keys.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=inner,
        num_hidden_layers=num_layers,
        # No layer attends; these are the smallest sizes that a configuration may have.
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=2,
        rms_norm_eps=keys.number("layer_norm_epsilon", 1e-5),
        max_position_embeddings=keys.integer(
            "max_position_embeddings", LONGEST, high=MAX_POSITIONS
        ),
        tie_word_embeddings=keys.flag("tie_word_embeddings", tied),
        embedding="backbone.embeddings",
        recurrent_layers=tuple(range(num_layers)),
        shapes=shapes,
        mixer=mixer,
    )


def read_gguf_1(keys: GgufKeys) -> ModelConfig:
    """Read the keys of a GGUF file of Mamba 1 or FalconMamba."""
    is_falcon = keys.flag(keys.own("ssm.dt_b_c_rms"), False)
    found = _gguf_json(keys, {"time_step_rank": "ssm.time_step_rank"})
    name = "FalconMambaForCausalLM" if is_falcon else "MambaForCausalLM"
    return read_json(found, architecture=name, tied=True)


def read_gguf_2(keys: GgufKeys) -> ModelConfig:
    """Read the keys of a GGUF file of Mamba 2."""
    num_heads = keys.integer(keys.own("ssm.time_step_rank"))
    found = _gguf_json(
        keys,
        {"n_groups": "ssm.group_count"},
        num_heads=num_heads,
        head_dim=keys.integer(keys.own("ssm.inner_size")) // num_heads,
    )
    return read_json(found, architecture="Mamba2ForCausalLM", tied=False)


def _gguf_json(keys: GgufKeys, names: dict[str, str], **values: Any) -> MetadataKeys:
    """Return the keys of config.json. A file's length of texts is arbitrary."""
    names |= {
        "intermediate_size": "ssm.inner_size",
        "state_size": "ssm.state_size",
        "conv_kernel": "ssm.conv_kernel",
        "layer_norm_epsilon": "attention.layer_norm_rms_epsilon",
    }
    return as_json(
        keys,
        names,
        use_bias=has(keys, "ssm_in.bias"),
        use_conv_bias=has(keys, "ssm_conv1d.bias"),
        max_position_embeddings=None,
        rope_parameters=None,
        **values,
    )


def gguf_original(config: ModelConfig, name: str, stored: Tensor) -> Tensor:
    """Undo what llama.cpp's converter did to a tensor: decays are no logarithms."""
    if config.architecture == "Mamba2ForCausalLM":
        return bamba.gguf_original(config, name, stored)
    return stored.neg().log() if name.endswith(".A_log") else stored


GGUF_TENSORS = {
    "token_embd": "backbone.embeddings",
    "output_norm": "backbone.norm_f",
    "attn_norm": "norm",
    **{own: name.replace("mamba.", "mixer.") for own, name in bamba.GGUF_TENSORS.items()},
}
GGUF_TENSORS_1 = {"ssm_x": "mixer.x_proj", "ssm_dt": "mixer.dt_proj"} | {
    "ssm_dt.bias": "mixer.dt_proj.bias"
}
"""The tensors of Mamba 1 alone."""
FAMILIES = tuple(
    Family(
        architecture=architecture,
        model_type=model_type,
        create=create,
        read_json=partial(read_json, architecture=architecture, tied=tied),
        gguf=gguf,
        read_gguf=read_gguf,
        gguf_tensors=GGUF_TENSORS | of_mamba_1,
        gguf_original=gguf_original,
    )
    for architecture, model_type, tied, gguf, read_gguf, of_mamba_1 in (
        ("MambaForCausalLM", "mamba", True, "mamba", read_gguf_1, GGUF_TENSORS_1),
        ("FalconMambaForCausalLM", "falcon_mamba", True, None, None, GGUF_TENSORS_1),
        ("Mamba2ForCausalLM", "mamba2", False, "mamba2", read_gguf_2, {}),
    )
)
