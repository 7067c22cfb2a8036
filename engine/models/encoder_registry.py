"""The encoder families, by the names that their modules state."""

import functools
import importlib
from collections.abc import Iterator

import torch
from torch import Tensor

from engine.errors import ModelLoadError, UnsupportedArchitecture
from engine.models.encoder import Encoder, EncoderConfig, EncoderFamily
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys
from engine.models.score_head import HeadForm

MODULES = ("bert", "modernbert")
"""The modules of `engine.models` with `ENCODERS`, imported when the first encoder is looked up."""

_OLD_NAMES = ((".gamma", ".weight"), (".beta", ".bias"))
"""Old names of norms' tensors, as in the first checkpoints of BERT, with the present ones."""
_HEADS = (
    "pooler.",
    "cls.",
    "classifier.",
    "head.",
    "decoder.",
    "lm_head.",
    "embeddings.position_ids",
)
"""Prefixes of tensors outside the encoder, and tables that follow from its sizes."""


def encoder_family(keys: MetadataKeys) -> EncoderFamily | None:
    """Return the encoder family of a config.json, or None if no family is known for it."""
    names = keys.values.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    model_type = keys.values.get("model_type")
    for family in _families():
        if name in family.architectures or (name is None and model_type == family.model_type):
            return family
    return None


def supported_encoders() -> list[str]:
    """Return the architecture of each family."""
    return [family.architectures[0] for family in _families()]


def read_encoder_config(keys: MetadataKeys) -> EncoderConfig:
    """Read the configuration of an encoder from config.json's keys.

    Raises:
        UnsupportedArchitecture: no encoder family has this architecture; the message lists those
            there are.
        ModelLoadError: a key is missing or nonsense; the message names it.
    """
    config = _family_of(keys).read_json(keys)
    if config.hidden_size % config.num_attention_heads:
        raise ModelLoadError(
            f"config.json: hidden_size is {config.hidden_size}; it must be a multiple of "
            f"num_attention_heads, which is {config.num_attention_heads}"
        )
    return config


def create_encoder(
    keys: MetadataKeys,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    deterministic: bool = False,
) -> Encoder:
    """Build the encoder of a config.json, without weights.

    Raises:
        UnsupportedArchitecture, ModelLoadError: as in `read_encoder_config`.
    """
    options = WeightOptions(dtype=dtype, device=torch.device(device), deterministic=deterministic)
    return _family_of(keys).create(read_encoder_config(keys), options).eval()


def encoder_weights(
    keys: MetadataKeys, tensors: Iterator[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Rename a checkpoint's tensors to the encoder's names, leaving out those of heads."""
    prefix = _family_of(keys).prefix
    for stored, tensor in tensors:
        name = stored.removeprefix(prefix)
        for old, new in _OLD_NAMES:
            name = name.removesuffix(old) + new if name.endswith(old) else name
        if not name.startswith(_HEADS):
            yield name, tensor


def read_head_form(keys: MetadataKeys) -> HeadForm:
    """Read the form of the head that scores a text with an encoder.

    Raises:
        UnsupportedArchitecture, ModelLoadError: as in `read_encoder_config`.
    """
    return _family_of(keys).read_head(keys)


def _family_of(keys: MetadataKeys) -> EncoderFamily:
    family = encoder_family(keys)
    if family is None:
        supported = ", ".join(supported_encoders())
        stated = keys.values.get("architectures") or keys.values.get("model_type")
        raise UnsupportedArchitecture(
            f"architecture {stated!r} is not a supported encoder; the supported ones are "
            f"{supported}"
        )
    return family


@functools.cache
def _families() -> tuple[EncoderFamily, ...]:
    modules = (importlib.import_module(f"engine.models.{name}") for name in MODULES)
    return tuple(family for module in modules for family in module.ENCODERS)
