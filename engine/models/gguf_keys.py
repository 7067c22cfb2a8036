"""Keys and tensors of GGUF files that several families read in the same way."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.errors import MissingWeight, ModelLoadError, UnsupportedArchitecture
from engine.models.config import MAX_LAYERS, ModelConfig
from engine.models.layers.rotary import yarn_magnitude
from engine.models.metadata_keys import MetadataKeys
from engine.models.rope_keys import (
    MAX_POSITIONS,
    extended_length,
    normalise_rope_scaling,
    rope_base,
)

ROPE_DIVISORS = "rope_freqs.weight"
LONG_DIVISORS, SHORT_DIVISORS = "rope_factors_long.weight", "rope_factors_short.weight"
NO_WEIGHTS = (ROPE_DIVISORS, LONG_DIVISORS, SHORT_DIVISORS)
"""The tensors with divisors of the rotary frequencies; LongRoPE has two lists."""
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""The tensors of most families' layers: GGUF's name to Hugging Face's."""


EXPERT_TENSORS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.*.gate_proj",
    "ffn_up_exps": "mlp.experts.*.up_proj",
    "ffn_gate_up_exps": "mlp.experts.*.gate_up_proj",
    "ffn_down_exps": "mlp.experts.*.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
"""The tensors of Qwen's experts; some files have gates and ups in one."""
_JSON_NAMES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "num_experts": "expert_count",
    "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    "sliding_window": "attention.sliding_window",
}
"""Keys of config.json, and GGUF's names of them without the architecture."""


class GgufKeys(MetadataKeys):
    """A GGUF file's metadata, with facts about its tensors.

    Args:
        values: metadata by key.
        source: the file's name.
        shapes: shapes of the tensors, by GGUF name.
        divisors: the file's tensors of `NO_WEIGHTS`, each [D/2] fp32.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        source: str,
        shapes: Mapping[str, tuple[int, ...]],
        divisors: Mapping[str, NDArray[np.float32]],
    ) -> None:
        super().__init__(values, source)
        self.architecture: str = self.text("general.architecture")
        self.shapes = shapes
        self.divisors = divisors

    def own(self, name: str) -> str:
        """Return the full name of one of the architecture's keys."""
        return f"{self.architecture}.{name}"


def unpaired_rows(config: ModelConfig, name: str, stored: Tensor) -> Tensor:
    """Bring rows of q and k into Hugging Face's order: those of two elements that are rotated
    together lie side by side in the file.

    Raises:
        ModelLoadError: the rows do not divide into the heads.
    """
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    num_heads, num_rows = heads.get(name.split(".")[-2]), len(stored)
    if num_heads is None or not name.startswith("model."):
        return stored
    if num_rows % (2 * num_heads):
        raise ModelLoadError(
            f"tensor {name!r} has {num_rows} rows, which cannot be divided into {num_heads} "
            f"heads with an even number of rows each; the file contradicts its own metadata"
        )
    return stored[torch.arange(num_rows).reshape(num_heads, -1, 2).transpose(1, 2).flatten()]


def as_json(keys: GgufKeys, names: Mapping[str, str], **values: Any) -> MetadataKeys:
    """Return the keys of config.json that a file implies.

    Args:
        names: the family's keys: GGUF's name without the architecture, by config.json's.
        values: values of other keys.
    """
    own = keys.own
    found = {name: keys.values.get(own(key)) for name, key in {**_JSON_NAMES, **names}.items()}
    drafting = keys.integer(own("nextn_predict_layers"), 0, low=0)
    found |= {
        "vocab_size": _vocab_size(keys),
        "num_hidden_layers": keys.integer(own("block_count"), high=MAX_LAYERS) - drafting,
        "tie_word_embeddings": "output.weight" not in keys.shapes,
        "attention_bias": has(keys, "attn_q.bias"),
    }
    if "rope_parameters" not in values:
        found |= _json_rope(keys)
    return MetadataKeys(found | values, keys.source)


def _json_rope(keys: GgufKeys) -> dict[str, Any]:
    """Return config.json's keys about heads that are rotated."""
    head_dim = _head_dim(keys, keys.integer(keys.own("attention.head_count")))
    rope = rope_fields(keys, partial=True)
    parameters = {
        "rope_theta": rope["rope_theta"],
        "partial_rotary_factor": rotated_share(rope["rotary_dim"], head_dim),
        **(rope["rope_scaling"] or {}),
    }
    return {"head_dim": head_dim, "rope_parameters": parameters}


def rotated_share(rotated: int, head_dim: int) -> float:
    """Return a share of a head that gives the number of elements again, however it is rounded."""
    return min(1.0, (rotated + 0.25) / head_dim)


def of_layers(keys: GgufKeys, key: str) -> list[int]:
    """Return an entry per layer of a key that has a number, or a list of them."""
    name, num_layers = keys.own(key), keys.integer(keys.own("block_count"), high=MAX_LAYERS)
    stated = keys.values.get(name)
    entries = stated if isinstance(stated, list) else [stated] * num_layers
    found = [one for one in entries if isinstance(one, int)]
    if not len(found) == len(entries) == num_layers:
        raise keys.nonsense(name, f"a number or a list of {num_layers} numbers")
    return found


def has(keys: GgufKeys, end: str) -> bool:
    """Return whether a layer has a tensor with a name that ends so."""
    return any(name.endswith(f".{end}") for name in keys.shapes)


def size_fields(keys: GgufKeys, *, experts: bool = False) -> dict[str, Any]:
    """Read the fields of `ModelConfig` that are sizes.

    Args:
        experts: whether the family may have experts.

    Raises:
        UnsupportedArchitecture: the model has experts and the family has none.
    """
    own = keys.own
    if not experts and keys.integer(own("expert_count"), 0, low=0):
        raise UnsupportedArchitecture(
            f"GGUF architecture {keys.architecture[:80]!r} with a mixture of experts is not "
            f"supported; use the safetensors of this model"
        )
    num_heads = keys.integer(own("attention.head_count"))
    return {
        "vocab_size": _vocab_size(keys),
        "hidden_size": keys.integer(own("embedding_length")),
        "intermediate_size": keys.integer(own("feed_forward_length")),
        "num_hidden_layers": keys.integer(own("block_count"), high=MAX_LAYERS),
        "num_attention_heads": num_heads,
        "num_key_value_heads": _num_kv_heads(keys, num_heads),
        "head_dim": _head_dim(keys, num_heads),
        "rms_norm_eps": keys.number(own("attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": "output.weight" not in keys.shapes,
    }


def rope_fields(keys: GgufKeys, *, partial: bool = False) -> dict[str, Any]:
    """Read the fields of `ModelConfig` about positions.

    Args:
        partial: whether the family may rotate a part of each head.
    """
    trained = keys.integer(keys.own("context_length"), high=MAX_POSITIONS)
    theta = rope_base(keys, keys.own("rope.freq_base"))
    scaling = _rope_scaling(keys, trained)
    head_dim = _head_dim(keys, keys.integer(keys.own("attention.head_count")))
    if ROPE_DIVISORS in keys.divisors:
        scaling = _llama3_scaling(keys, keys.divisors[ROPE_DIVISORS], theta, head_dim)
    dimensions = keys.own("rope.dimension_count")
    rotated = keys.integer(dimensions, head_dim, low=2, high=head_dim)
    if rotated != head_dim and not partial:
        raise keys.nonsense(dimensions, f"{head_dim}, the size of a head")
    return {
        **({"rotary_dim": rotated} if partial else {}),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "max_position_embeddings": extended_length(trained, scaling),
    }


def bias_fields(keys: GgufKeys) -> dict[str, Any]:
    """Read the fields of `ModelConfig` that say which linear layers have biases."""
    return {
        "attention_bias": "blk.0.attn_q.bias" in keys.shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in keys.shapes,
    }


def layer_windows(keys: GgufKeys) -> tuple[int | None, ...]:
    """Return `ModelConfig.windows` of a family in which all layers have the same window."""
    window = keys.integer(keys.own("attention.sliding_window"), 0, low=0)
    num_layers: int = keys.integer(keys.own("block_count"), high=MAX_LAYERS)
    return (window,) * num_layers if window else ()


def _vocab_size(keys: GgufKeys) -> int:
    """Return the rows of the embedding. The token list may be shorter, since some models pad."""
    shape = keys.shapes.get("token_embd.weight")
    if shape is None:
        raise MissingWeight(
            "the GGUF file has no token_embd.weight; it does not hold a whole model"
        )
    return shape[0]


def _num_kv_heads(keys: GgufKeys, num_heads: int) -> int:
    key = keys.own("attention.head_count_kv")
    num_kv_heads: int = keys.integer(key, num_heads)
    if num_heads % num_kv_heads:
        raise keys.nonsense(key, f"a divisor of the number of heads, which is {num_heads}")
    return num_kv_heads


def _head_dim(keys: GgufKeys, num_heads: int) -> int:
    hidden_size = keys.integer(keys.own("embedding_length"))
    head_dim: int = keys.integer(keys.own("attention.key_length"), hidden_size // num_heads)
    if head_dim % 2 or head_dim == 0:
        raise ModelLoadError(
            f"{keys.source}: {hidden_size} hidden units and {num_heads} heads give a head size of "
            f"{head_dim}; rotary embeddings need an even head size"
        )
    if keys.integer(keys.own("attention.value_length"), head_dim) != head_dim:
        raise keys.nonsense(keys.own("attention.value_length"), f"{head_dim}, the size of a head")
    return head_dim


def _rope_scaling(keys: GgufKeys, trained: int) -> dict[str, Any] | None:
    """Read a scaling. Without a type it is linear, and old files have another key for its factor.

    Raises:
        UnsupportedArchitecture: it has a `yarn_attn_factor` that may mean two things.
    """
    kind = keys.text(keys.own("rope.scaling.type"), "linear")
    factor = keys.own("rope.scaling.factor")
    if kind == "linear" and factor not in keys.values:
        factor = keys.own("rope.scale_linear")
    if kind == "none" or (kind == "linear" and not keys.values.get(factor)):
        return None
    raw = {
        "rope_type": kind,
        "factor": keys.number(factor),
        "original_max_position_embeddings": keys.integer(
            keys.own("rope.scaling.original_context_length"), None
        ),
        "beta_fast": keys.number(keys.own("rope.scaling.yarn_beta_fast"), None),
        "beta_slow": keys.number(keys.own("rope.scaling.yarn_beta_slow"), None),
    }
    present = {name: value for name, value in raw.items() if value is not None}
    if kind == "yarn":
        _check_magnitude(keys, present["factor"])
    return normalise_rope_scaling(present, trained, keys.source)


def _check_magnitude(keys: GgufKeys, factor: float) -> None:
    """Check that `yarn_attn_factor` is YaRN's usual number. llama.cpp's converter writes the
    checkpoint's `attention_factor` there, which is the whole number, or its `attn_factor`, by which
    the usual one is multiplied.

    Raises:
        UnsupportedArchitecture: it is another number.
    """
    name, usual = keys.own("rope.scaling.yarn_attn_factor"), yarn_magnitude(factor, 1.0)
    stated = keys.number(name, usual)
    if not math.isclose(stated, usual, rel_tol=1e-4):
        raise UnsupportedArchitecture(
            f"{keys.source}: {name} is {stated:g} and not {usual:g}, as usual with this factor; it "
            f"may stand for attention_factor or for attn_factor, which mean different things: use "
            f"the safetensors of this model"
        )


def _llama3_scaling(
    keys: GgufKeys, stored: NDArray[np.float32], theta: float, head_dim: int
) -> dict[str, Any]:
    """Recover the parameters of `rope_freqs.weight`, which holds a divisor for each frequency.

    llama.cpp stores the result of Llama 3.1's rule instead of its parameters. Published models
    share two of them, and the third is 4, or 1 in Llama 4; the factor is the largest divisor.

    Raises:
        ModelLoadError: the divisors do not follow that rule.
    """
    factor = float(stored.max())
    for high in (4.0, 1.0):
        expected = _llama3_divisors(theta, head_dim, factor, high)
        if stored.shape == expected.shape and np.allclose(stored, expected, rtol=1e-3):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": high,
                "original_max_position_embeddings": 8192,
            }
    raise ModelLoadError(
        f"{keys.source}: {ROPE_DIVISORS} scales rotary frequencies in an unsupported way; use "
        f"the safetensors of this model"
    )


def _llama3_divisors(
    theta: float, head_dim: int, factor: float, high: float
) -> NDArray[np.float64]:
    """Compute the divisors [D/2] in fp64, the inverse of transformers'
    `_compute_llama3_parameters`."""
    wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    turns = 8192 / wavelength
    smooth = np.clip((turns - 1.0) / (high - 1.0), 0.0, 1.0) if high > 1.0 else turns > 1.0
    return np.asarray(1.0 / ((1.0 - smooth) / factor + smooth))
