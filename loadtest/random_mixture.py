"""Writes mixtures of experts of 3 to 4 B parameters with random weights as GGUF files.

    python -m loadtest.random_mixture FOLDER --tokenizer smollm2-q4_1.gguf --quantize llama-quantize

Layers have the shape of Qwen3-30B-A3B's with half of its experts (`qwen3`), or of gpt-oss-20b's
(`gpt-oss`); there are fewer of them. See `loadtest.random_llama`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from loadtest.random_llama import (
    CONTEXT,
    LOGIT_DEVIATION,
    RandomTensor,
    write_files,
    write_random_model,
)

QUANTIZED = ("Q4_K_M", "Q8_0", "MXFP4_MOE")


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureShape:
    """Sizes, and the architecture's name in GGUF."""

    architecture: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    chosen: int

    @property
    def is_gpt_oss(self) -> bool:
        return self.architecture == "gpt-oss"


QWEN3 = MixtureShape(
    architecture="qwen3moe",
    hidden=2048,
    inner=768,
    layers=12,
    heads=32,
    kv_heads=4,
    head_dim=128,
    experts=64,
    chosen=8,
)
GPT_OSS = MixtureShape(
    architecture="gpt-oss",
    hidden=2880,
    inner=2880,
    layers=4,
    heads=64,
    kv_heads=8,
    head_dim=64,
    experts=32,
    chosen=4,
)
SHAPES = {"qwen3": QWEN3, "gpt-oss": GPT_OSS}


def mixture_tensors(shape: MixtureShape, vocab_size: int) -> Iterator[RandomTensor]:
    """All tensors of the file."""
    hidden, inner, experts = shape.hidden, shape.inner, shape.experts
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    added = 1 / math.sqrt(2 * shape.layers)
    logits = LOGIT_DEVIATION / math.sqrt(hidden)
    yield RandomTensor("token_embd.weight", (vocab_size, hidden), logits)
    yield RandomTensor("output.weight", (vocab_size, hidden), logits)
    yield RandomTensor("output_norm.weight", (hidden,), None)
    matrices: dict[str, tuple[tuple[int, ...], float]] = {
        "attn_q": ((queries, hidden), 1.0),
        "attn_k": ((keys, hidden), 1.0),
        "attn_v": ((keys, hidden), 1.0),
        "attn_output": ((hidden, queries), added),
        "ffn_gate_inp": ((experts, hidden), 1.0),
        "ffn_gate_exps": ((experts, inner, hidden), 1.0),
        "ffn_up_exps": ((experts, inner, hidden), 1.0),
        "ffn_down_exps": ((experts, hidden, inner), added),
    }
    norms = {"attn_norm": hidden}
    if shape.is_gpt_oss:
        norms |= {"post_attention_norm": hidden, "attn_sinks": shape.heads}
    else:
        norms |= {"ffn_norm": hidden, "attn_q_norm": shape.head_dim, "attn_k_norm": shape.head_dim}
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        for name, size in norms.items():
            yield RandomTensor(f"{block}.{name}.weight", (size,), None)
        for name, (sizes, gain) in matrices.items():
            deviation = gain / math.sqrt(sizes[-1])
            # A router stays in fp32 in all files.
            yield RandomTensor(f"{block}.{name}.weight", sizes, deviation, name == "ffn_gate_inp")
            if shape.is_gpt_oss:
                yield RandomTensor(f"{block}.{name}.bias", sizes[:-1], 0.1, True)


def write_random_mixture(path: Path, size: str, tokenizer: Path, *, seed: int = 0) -> None:
    """Write a bf16 GGUF file. See `loadtest.random_llama.write_random_llama`."""
    write_random_model(
        path,
        SHAPES[size].architecture,
        partial(_describe, SHAPES[size]),
        tokenizer,
        seed=seed,
    )


def _describe(shape: MixtureShape, writer: Any, vocab_size: int) -> Iterator[RandomTensor]:
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_expert_feed_forward_length(shape.inner)
    writer.add_expert_count(shape.experts)
    writer.add_expert_used_count(shape.chosen)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(vocab_size)
    if shape.is_gpt_oss:
        writer.add_sliding_window(128)
    return mixture_tensors(shape, vocab_size)


if __name__ == "__main__":
    write_files("mixture", SHAPES, QUANTIZED, write_random_mixture)
