"""Reads a GGUF file's metadata as a `ModelConfig`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.contract.sampling_params import SAMPLER_PARAMETERS
from engine.errors import ModelLoadError, UnsupportedArchitecture
from engine.files.gguf_header import read_gguf_header
from engine.models.config import ModelConfig
from engine.models.gguf_keys import NO_WEIGHTS, GgufKeys
from engine.models.projector_keys import ProjectorKeys
from engine.models.registry import family_of_gguf, family_of_projector, gguf_architectures
from engine.text.gguf_tokenizer import end_tokens
from engine.text.vocabulary import TokenType
from engine.weights.gguf import load_tensor
from engine.weights.gguf_tensors import GGUFTensor, read_tensors
from engine.weights.known_sampling import known_sampling

_ENCODER = "clip"
"""The architecture of files with an encoder for pictures."""
_STOP_TOKENS = ("eos", "eot", "eom")
_DRAWING = ("flux", "lumina2", "qwen_image", "sd3")
"""The architectures of image models' transformers; Z-Image is lumina2."""
_SAMPLING = {one.name: one.gguf_key for one in SAMPLER_PARAMETERS.values() if one.gguf_key}


def read_gguf_config(path: Path, mmproj: Path | None = None) -> ModelConfig:
    """Read the configuration in a GGUF file.

    Args:
        mmproj: the file of the encoder for pictures, if the model takes some.

    Raises:
        CorruptFile: the file is damaged.
        UnsupportedArchitecture: no family here has this architecture.
        ModelLoadError: a key is missing or has an impossible value; the message names it.
    """
    tensors = read_tensors(path)
    keys = GgufKeys(
        read_gguf_header(path).metadata,
        path.name,
        {name: tensor.shape for name, tensor in tensors.items()},
        {name: _numbers(tensors[name]) for name in NO_WEIGHTS if name in tensors},
    )
    if keys.architecture == _ENCODER:
        raise UnsupportedArchitecture(
            f"{path.name} holds the encoder for a model's pictures; give the model's own file, and "
            f"this one as mmproj"
        )
    if keys.architecture in _DRAWING:
        raise UnsupportedArchitecture(
            f"{path.name} holds the transformer of an image model; move it into the folder "
            f"'transformer' of the same model's diffusers folder, in place of the .safetensors "
            f"files there, and give the diffusers folder, which has the other parts"
        )
    family = family_of_gguf(keys.architecture)
    if family is None or family.read_gguf is None:
        raise UnsupportedArchitecture(
            f"GGUF architecture {keys.architecture[:80]!r} is not supported; supported are "
            f"{', '.join(gguf_architectures())}"
        )
    if not keys.flag(keys.own("attention.causal"), True):
        raise UnsupportedArchitecture(
            f"{path.name} holds a model whose tokens also attend to later ones, which is not "
            f"supported; serve a model that writes texts, or an encoder from a folder"
        )
    config = family.read_gguf(keys)
    if mmproj is not None:
        config = _with_pictures(config, keys, mmproj)
    return replace(
        config,
        bos_token_id=next(iter(keys.ids("tokenizer.ggml.bos_token_id")), None),
        eos_token_ids=_stop_tokens(keys),
        never_token_ids=keys.ids("tokenizer.ggml.suppress_tokens"),
        generation=_stated_sampling(keys) or known_sampling(keys.values),
    )


def _with_pictures(config: ModelConfig, text: GgufKeys, path: Path) -> ModelConfig:
    """Return the configuration with what an mmproj file says about pictures.

    Raises:
        ModelLoadError: the file belongs to another model, or cannot be used.
    """
    tensors = read_tensors(path)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    keys = ProjectorKeys(read_gguf_header(path).metadata, path.name, shapes, text)
    if keys.text("general.architecture") != _ENCODER:
        raise ModelLoadError(f"{path.name} is not an mmproj file, with an encoder for pictures")
    family = family_of_projector(keys.projector, config.architecture)
    if family is None or family.read_projector is None or family.read_pictures is None:
        raise UnsupportedArchitecture(
            f"{path.name} holds an encoder of type {keys.projector[:80]!r}, which is not supported "
            f"for models of type {text.architecture!r}"
        )
    if (size := keys.size("projection_dim")) != config.hidden_size:
        raise ModelLoadError(
            f"{path.name} belongs to another model: its states have {size} numbers, those of "
            f"{text.source} {config.hidden_size}"
        )
    picture_keys, config = family.read_projector(keys, config)
    facts, vision = family.read_pictures(picture_keys, config)
    return replace(config, architecture=family.architecture, pictures=facts, vision=vision)


def _stop_tokens(keys: GgufKeys) -> tuple[int, ...]:
    """The tokens that end a sequence, turn or message, stated or known by name; many files state
    only one."""
    ids = [i for name in _STOP_TOKENS for i in keys.ids(f"tokenizer.ggml.{name}_token_id")]
    tokens = keys.values.get("tokenizer.ggml.tokens", ())
    types = keys.values.get("tokenizer.ggml.token_type", ())
    whole, ends = (TokenType.CONTROL, TokenType.USER_DEFINED), end_tokens(tokens)
    named = [
        i
        for i, (token, kind) in enumerate(zip(tokens, types, strict=False))
        if kind in whole and token in ends
    ]
    return tuple(dict.fromkeys(ids + named))


def _stated_sampling(keys: GgufKeys) -> dict[str, Any]:
    stated = {name: keys.values.get(f"general.sampling.{key}") for name, key in _SAMPLING.items()}
    return {name: value for name, value in stated.items() if value is not None}


def _numbers(tensor: GGUFTensor) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = load_tensor(tensor).float().numpy().ravel()
    return numbers
