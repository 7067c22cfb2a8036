"""A GGUF file's metadata as a `ModelConfig`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint_files import open_regular
from engine.errors import MissingWeight, ModelLoadError, UnsupportedArchitecture
from engine.models.config import MAX_LAYERS, ModelConfig
from engine.text.gguf_metadata import read_metadata
from engine.text.gguf_tokenizer import END_TOKENS
from engine.text.vocabulary import TokenType
from engine.weights.config_json import (
    MAX_POSITIONS,
    extended_length,
    normalise_rope_scaling,
    rope_base,
)
from engine.weights.gguf import load_tensor
from engine.weights.gguf_tensors import GGUFTensor, read_tensors
from engine.weights.metadata_keys import MetadataKeys

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_STOP_TOKENS = ("eos", "eot", "eom")
_ROPE_FACTORS = "rope_freqs.weight"
_SAMPLING = {
    "temperature": "temp",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}


def read_gguf_config(path: Path) -> ModelConfig:
    """
    Raises:
        CorruptFile: the file is damaged.
        UnsupportedArchitecture: neither llama (also Mistral, Yi, SmolLM2) nor qwen2 nor qwen3.
        ModelLoadError: a key is missing or nonsense (named).
    """
    metadata = read_metadata(path)
    tensors = read_tensors(path)
    keys = MetadataKeys(metadata, path.name)
    arch = keys.text("general.architecture")
    architecture = _ARCHITECTURES.get(arch)
    if architecture is None or keys.integer(f"{arch}.expert_count", 0, low=0):
        mixture = "" if architecture is None else " (mixture of experts)"
        raise UnsupportedArchitecture(
            f"GGUF architecture {arch[:80]!r}{mixture} is not supported; supported are "
            f"{', '.join(_ARCHITECTURES)}"
        )
    num_heads = keys.integer(f"{arch}.attention.head_count")
    head_dim = _head_dim(keys, arch, num_heads)
    theta = rope_base(keys, f"{arch}.rope.freq_base")
    context_length = keys.integer(f"{arch}.context_length", high=MAX_POSITIONS)
    rope_scaling = _rope_scaling(keys, arch, context_length)
    factors = tensors.get(_ROPE_FACTORS)
    if factors is not None:
        rope_scaling = _llama3_scaling(path, factors, theta, head_dim)
    return ModelConfig(
        architecture=architecture,
        vocab_size=_vocab_size(tensors),
        hidden_size=keys.integer(f"{arch}.embedding_length"),
        intermediate_size=keys.integer(f"{arch}.feed_forward_length"),
        num_hidden_layers=keys.integer(f"{arch}.block_count", high=MAX_LAYERS),
        num_attention_heads=num_heads,
        num_key_value_heads=_num_kv_heads(keys, arch, num_heads),
        head_dim=head_dim,
        rms_norm_eps=keys.number(f"{arch}.attention.layer_norm_rms_epsilon"),
        max_position_embeddings=extended_length(context_length, rope_scaling),
        rope_theta=theta,
        rope_scaling=rope_scaling,
        tie_word_embeddings="output.weight" not in tensors,
        attention_bias=arch != "qwen2" and "blk.0.attn_q.bias" in tensors,
        mlp_bias="blk.0.ffn_up.bias" in tensors,
        sliding_window=keys.integer(f"{arch}.attention.sliding_window", None),
        bos_token_id=next(iter(keys.ids("tokenizer.ggml.bos_token_id")), None),
        eos_token_ids=_stop_tokens(keys),
        generation=_sampling_defaults(keys),
    )


def _vocab_size(tensors: Mapping[str, GGUFTensor]) -> int:
    """Rows of the embedding. The token list may be shorter: some models pad."""
    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        raise MissingWeight("the GGUF file has no token_embd.weight; it holds no whole model")
    return embedding.shape[0]


def _stop_tokens(keys: MetadataKeys) -> tuple[int, ...]:
    """End of sequence, of turn and of message, stated or known by name: many files state one."""
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


def _sampling_defaults(keys: MetadataKeys) -> dict[str, float]:
    present = {
        name: f"general.sampling.{key}"
        for name, key in _SAMPLING.items()
        if f"general.sampling.{key}" in keys.values
    }
    return {name: keys.number(key, positive=False) for name, key in present.items()}


def _num_kv_heads(keys: MetadataKeys, arch: str, num_heads: int) -> int:
    key = f"{arch}.attention.head_count_kv"
    num_kv_heads: int = keys.integer(key, num_heads)
    if num_heads % num_kv_heads:
        raise keys.nonsense(key, f"a divisor of the number of heads, which is {num_heads}")
    return num_kv_heads


def _head_dim(keys: MetadataKeys, arch: str, num_heads: int) -> int:
    hidden_size = keys.integer(f"{arch}.embedding_length")
    head_dim: int = keys.integer(f"{arch}.attention.key_length", hidden_size // num_heads)
    if head_dim % 2 or head_dim == 0:
        raise ModelLoadError(
            f"{keys.source}: {hidden_size} hidden units and {num_heads} heads give a head of "
            f"{head_dim}; rotary embeddings need it even"
        )
    for name, wanted in (("attention.value_length", head_dim), ("rope.dimension_count", head_dim)):
        if keys.integer(f"{arch}.{name}", wanted) != wanted:
            raise keys.nonsense(f"{arch}.{name}", f"{head_dim}, the size of a head")
    return head_dim


def _rope_scaling(keys: MetadataKeys, arch: str, context_length: int) -> dict[str, Any] | None:
    kind = keys.text(f"{arch}.rope.scaling.type", "none")
    if kind == "none":
        return None
    original = keys.integer(f"{arch}.rope.scaling.original_context_length", None)
    raw = {
        "rope_type": kind,
        "factor": keys.number(f"{arch}.rope.scaling.factor"),
        "original_max_position_embeddings": original,
    }
    present = {name: value for name, value in raw.items() if value is not None}
    return normalise_rope_scaling(present, context_length, keys.source)


def _llama3_scaling(path: Path, tensor: GGUFTensor, theta: float, head_dim: int) -> dict[str, Any]:
    """The parameters behind `rope_freqs.weight`, which holds a divisor for each frequency.

    llama.cpp stores the result of Llama 3.1's rule instead of its parameters. All published models
    use the same three of them; only the factor differs, and it is the largest divisor.

    Raises:
        ModelLoadError: the divisors do not follow that rule.
    """
    with open_regular(path) as file:
        data = np.memmap(file, mode="r", dtype=np.uint8)
    stored = load_tensor(data, tensor, path.name).float().numpy().ravel()
    factor = float(stored.max())
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    expected = _llama3_divisors(theta, head_dim, factor)
    if stored.shape != expected.shape or not np.allclose(stored, expected, rtol=1e-3):
        raise ModelLoadError(
            f"{path.name}: {_ROPE_FACTORS} scales rotary frequencies in an unknown way; use the "
            f"safetensors of this model"
        )
    return scaling


def _llama3_divisors(theta: float, head_dim: int, factor: float) -> np.ndarray:
    """[D/2] fp64. As in transformers' `_compute_llama3_parameters`, inverted."""
    wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((8192 / wavelength - 1.0) / (4.0 - 1.0), 0.0, 1.0)
    return np.asarray(1.0 / ((1.0 - smooth) / factor + smooth))
