"""Reads a GGUF file's metadata as a `ModelConfig`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.contract.sampling_params import SAMPLER_PARAMETERS
from engine.errors import UnsupportedArchitecture
from engine.files.gguf_header import read_gguf_header
from engine.models.config import ModelConfig
from engine.models.gguf_keys import NO_WEIGHTS, GgufKeys
from engine.models.registry import family_of_gguf, gguf_architectures
from engine.text.gguf_tokenizer import END_TOKENS
from engine.text.vocabulary import TokenType
from engine.weights.gguf import load_tensor
from engine.weights.gguf_tensors import GGUFTensor, read_tensors
from engine.weights.known_sampling import known_sampling

_STOP_TOKENS = ("eos", "eot", "eom")
_SAMPLING = {one.name: one.gguf_key for one in SAMPLER_PARAMETERS.values() if one.gguf_key}


def read_gguf_config(path: Path) -> ModelConfig:
    """Read the configuration in a GGUF file.

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
    family = family_of_gguf(keys.architecture)
    if family is None or family.read_gguf is None:
        raise UnsupportedArchitecture(
            f"GGUF architecture {keys.architecture[:80]!r} is not supported; supported are "
            f"{', '.join(gguf_architectures())}"
        )
    return replace(
        family.read_gguf(keys),
        bos_token_id=next(iter(keys.ids("tokenizer.ggml.bos_token_id")), None),
        eos_token_ids=_stop_tokens(keys),
        generation=_stated_sampling(keys) or known_sampling(keys.values),
    )


def _stop_tokens(keys: GgufKeys) -> tuple[int, ...]:
    """The tokens that end a sequence, turn or message, stated or known by name; many files state
    only one."""
    ids = [i for name in _STOP_TOKENS for i in keys.ids(f"tokenizer.ggml.{name}_token_id")]
    tokens = keys.values.get("tokenizer.ggml.tokens", ())
    types = keys.values.get("tokenizer.ggml.token_type", ())
    whole = (TokenType.CONTROL, TokenType.USER_DEFINED)
    named = [
        i
        for i, (token, kind) in enumerate(zip(tokens, types, strict=False))
        if kind in whole and token in END_TOKENS
    ]
    return tuple(dict.fromkeys(ids + named))


def _stated_sampling(keys: GgufKeys) -> dict[str, Any]:
    stated = {name: keys.values.get(f"general.sampling.{key}") for name, key in _SAMPLING.items()}
    return {name: value for name, value in stated.items() if value is not None}


def _numbers(tensor: GGUFTensor) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = load_tensor(tensor).float().numpy().ravel()
    return numbers
