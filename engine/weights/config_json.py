"""Reads a model folder's config.json and generation_config.json as a `ModelConfig`."""

from dataclasses import replace
from pathlib import Path

import structlog

from engine.errors import ModelLoadError
from engine.files.checkpoint_files import read_json, read_optional_json
from engine.models.config import ModelConfig
from engine.models.family import Family
from engine.models.metadata_keys import MetadataKeys
from engine.models.registry import (
    families,
    family_of,
    family_of_model_type,
    picture_readers,
)
from engine.weights.default_sampling import FILE_NAME, recommended
from engine.weights.picture_files import with_pictures
from engine.weights.safetensors import folder_headers

_HEAD = "lm_head.weight"

log = structlog.get_logger(__name__)


def read_config_json(folder: Path) -> ModelConfig:
    """Read the configuration of a model folder.

    Raises:
        CorruptFile: a file is not JSON.
        UnsupportedArchitecture: no family here has this architecture; the message names the
            nearest.
        ModelLoadError: a key is missing or has an impossible value; the message names it.
    """
    keys = MetadataKeys(read_json(folder / "config.json"), "config.json")
    generation = MetadataKeys(read_optional_json(folder / FILE_NAME), FILE_NAME)
    # The family is found first, so that an unknown one is not reported as having missing keys.
    family, text = _family(keys)
    config = family.read_json(text)
    read_pictures = family.read_pictures
    if text is not keys:
        if family.architecture in families():
            read_pictures = picture_readers().get(keys.values["architectures"][0])
        if read_pictures is None:
            log.warning("only text is served", reason="this model's pictures are not supported")
        tied = config.tie_word_embeddings and not _has_head(folder)
        config = replace(config, is_wrapped=True, tie_word_embeddings=tied)
    elif config.is_wrapped:
        text = keys.inner("text_config")
    config = replace(
        config,
        bos_token_id=next(iter(keys.ids("bos_token_id") or text.ids("bos_token_id")), None),
        eos_token_ids=(
            generation.ids("eos_token_id") or keys.ids("eos_token_id") or text.ids("eos_token_id")
        ),
        never_token_ids=generation.ids("suppress_tokens"),
        generation=recommended(generation.values),
    )
    if read_pictures is None:
        return config
    return with_pictures(config, read_pictures, keys, folder)


def _family(keys: MetadataKeys) -> tuple[Family, MetadataKeys]:
    """The family of a model, or of the decoder in it, and the keys that the family reads."""
    names = keys.values.get("architectures")
    if names is None:
        family = family_of_model_type(keys.text("model_type", ""))
        if family is None:
            raise ModelLoadError(
                "config.json names no architectures; give the folder of a language model"
            )
        return family, keys
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise keys.nonsense("architectures", "a list of names")
    if names[0] not in families():
        from engine.models.fallback.wrapper import inner_decoder  # it brings transformers

        keys = inner_decoder(keys) or keys
    return family_of(keys.values["architectures"][0]), keys


def _has_head(folder: Path) -> bool:
    """Whether the files have an output layer; configurations of wrappers are unreliable there."""
    return any(name.endswith(_HEAD) for name in folder_headers(folder))
