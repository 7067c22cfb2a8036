"""Inputs for `paged_attention`: decodes, chunks, mixtures, block borders, packed caches."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.paged_attention.paged_batch import WIDEST_IN_TRITON, PagedBatch
from kernels.shared.work import Work, num_bytes

TOLERANCE = {
    torch.float32: 2e-5,
    # Weights are rounded before they are multiplied by the values, by up to 2^-8 of each.
    torch.bfloat16: 6e-3,
    torch.float16: 8e-4,
}


@dataclass(frozen=True)
class Case:
    """Sequences as (query rows, context length), single rows first and longest first."""

    name: str
    sequences: tuple[tuple[int, int], ...]
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    block_size: int = 16
    window: int | None = None
    soft_cap: float | None = None
    kv_dtype: torch.dtype | None = None
    """The dtype of a packed cache, with a scale per slot and head; None for q's dtype."""
    num_layers: int = 3
    aligned: bool = False
    sinks: tuple[float, float] | None = None
    """The mean and spread of the heads' sinks."""
    parts: int = 2
    """1 if the values are the keys."""
    both_ways: int = 0
    """The number of rows of each stretch in which rows see each other in both directions, in chunks
    from the text's row 3 on; 0 for none."""


CASES = (
    Case("smollm2_decode", ((1, 171),), 9, 3, 64),
    Case("smollm2_batch", tuple((1, 190 - 3 * i) for i in range(32)), 9, 3, 64),
    Case("llama_mixed", ((1, 300), (1, 16), (64, 64), (33, 129)), 32, 8, 128),
    Case("first_token", ((1, 1),)),
    Case("block_borders", ((1, 33), (1, 32), (1, 31), (1, 17), (1, 16), (1, 15), (1, 1))),
    Case("very_unequal", ((1, 2000), (1, 900), (1, 40), (1, 7), (1, 7), (1, 2))),
    Case("whole_prompt", ((47, 47),)),
    Case("continued_chunk", ((5, 52), (16, 32), (31, 33))),
    Case("no_grouping", ((1, 20), (9, 20)), 3, 3, 8),
    Case("one_kv_head", ((1, 20), (9, 20)), 7, 1, 24),
    Case("block_of_one", ((1, 5), (4, 6)), block_size=1),
    Case("odd_block", ((1, 50), (20, 50)), block_size=7, num_layers=1),
    Case("window", ((1, 100), (1, 9), (40, 40), (10, 60)), window=13),
    Case("window_of_one", ((1, 30), (17, 17)), window=1),
    Case("window_beyond_context", ((1, 30), (17, 17)), window=4096),
    Case("no_sequences", ()),
    Case(
        "aligned", ((1, 100), (1, 27), (1, 26), (1, 9), (40, 40), (10, 60)), window=13, aligned=True
    ),
    Case("llama4_mixed", ((1, 1500), (1, 9), (50, 1060)), 10, 2, 128, window=512, aligned=True),
    Case("int8_aligned", ((1, 70), (9, 40)), window=16, kv_dtype=torch.int8, aligned=True),
    Case("head_80", ((1, 70), (1, 9), (9, 40)), 8, 2, 80, 32),
    Case("head_96", ((1, 70), (9, 40)), 3, 3, 96),
    Case("gemma2_mixed", ((1, 150), (1, 20), (19, 90)), 8, 4, 256, window=64, soft_cap=50.0),
    Case("qwen2_mixed", ((1, 70), (9, 40), (20, 20)), 14, 2, 64, 32),
    Case("group_of_eight", ((1, 70), (3, 3)), 16, 2, 64),
    Case("both_ways", ((1, 70), (9, 40), (64, 64), (40, 97)), both_ways=16),
    Case("both_ways_window", ((1, 9), (40, 40), (33, 160)), 8, 2, 64, window=13, both_ways=21),
    Case("int8_both_ways", ((33, 50), (64, 64)), both_ways=16, kv_dtype=torch.int8),
    Case("soft_cap", ((1, 100), (1, 9), (40, 40), (10, 60)), soft_cap=2.0),
    Case("int8_decode", ((1, 600), (1, 35), (1, 1)), 8, 2, 128, kv_dtype=torch.int8),
    Case("int8_mixed", ((1, 70), (9, 40), (33, 33)), 9, 3, 64, 32, kv_dtype=torch.int8),
    Case("fp8_decode", ((1, 600), (1, 35), (1, 1)), 8, 2, 128, kv_dtype=torch.float8_e4m3fn),
    Case("fp8_mixed", ((1, 70), (9, 40), (33, 33)), 7, 1, 64, kv_dtype=torch.float8_e4m3fn),
    Case("int8_window_soft_cap", ((1, 70), (9, 40)), window=13, soft_cap=5.0, kv_dtype=torch.int8),
    Case("gpt_oss_mixed", ((1, 600), (1, 35), (9, 40)), 64, 8, 64, window=128, sinks=(0.0, 2.0)),
    Case("large_sinks", ((1, 1100), (1, 1), (33, 50)), sinks=(100.0, 90.0)),
    Case("small_sinks", ((1, 700), (16, 16)), window=13, sinks=(-200.0, 90.0)),
    Case("int8_sinks", ((1, 600), (33, 50)), 9, 3, kv_dtype=torch.int8, sinks=(1.0, 2.0)),
    Case("soft_cap_sinks", ((1, 600), (9, 40)), soft_cap=2.0, sinks=(1.0, 2.0)),
    Case("keys_as_values", ((1, 600), (1, 9), (9, 40), (33, 33)), 16, 1, 72, parts=1),
    Case("keys_as_values_two_heads", ((1, 70), (20, 60)), 6, 2, 24, 7, window=13, parts=1),
    Case("deepseek_v2_lite_mixed", ((1, 600), (1, 9), (20, 90)), 16, 1, 576, parts=1),
    Case("int8_keys_as_values", ((1, 70), (9, 40)), 5, 1, 40, kv_dtype=torch.int8, parts=1),
)
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""The largest number of each packed dtype."""
REFUSED = {
    "composed": {c.name for c in CASES if c.soft_cap or c.kv_dtype or c.sinks},
    "triton": {c.name for c in CASES if c.head_dim > WIDEST_IN_TRITON},
}
"""The cases that each implementation leaves to others; it takes all other cases."""
_SMOLLM2 = (9, 3, 64)
_LLAMA3 = (32, 8, 128)
_LLAMA3_1B = (32, 8, 64)
_GPT_OSS = (64, 8, 64)
_LATENT = (16, 1, 576)
_DECODE_64 = ((1, 4096),) * 64
BENCHMARKS = {
    "cpu": (
        Case("smollm2 decode 1, context 1k", ((1, 1024),), *_SMOLLM2),
        Case("smollm2 decode 32, context 256", ((1, 256),) * 32, *_SMOLLM2),
        Case("smollm2 prompt 512", ((512, 512),), *_SMOLLM2),
        Case("smollm2 decode 1, context 6k", ((1, 6144),), *_SMOLLM2, num_layers=1),
        Case("smollm2 chunk 256, context 6k", ((256, 6144),), *_SMOLLM2, num_layers=1),
        Case("llama3.2_1b decode 1, context 6k", ((1, 6144),), *_LLAMA3_1B, num_layers=1),
        Case("llama3.2_1b chunk 256, context 6k", ((256, 6144),), *_LLAMA3_1B, num_layers=1),
        Case("llama3_8b decode 8, context 2k", ((1, 2048),) * 8, *_LLAMA3, num_layers=1),
        Case("deepseek_v2_lite decode 1, context 6k", ((1, 6144),), *_LATENT, parts=1),
    ),
    "cuda": (
        Case("llama3_8b decode 1, context 4k", ((1, 4096),), *_LLAMA3),
        Case("llama3_8b decode 64, context 4k", _DECODE_64, *_LLAMA3, num_layers=1),
        Case("the same, int8", _DECODE_64, *_LLAMA3, num_layers=1, kv_dtype=torch.int8),
        Case("the same, fp8", _DECODE_64, *_LLAMA3, num_layers=1, kv_dtype=torch.float8_e4m3fn),
        Case("llama3_8b prompt 4096", ((4096, 4096),), *_LLAMA3),
    ),
}
"""Shapes of real models by type of device; `kernels.tools.bench` times them."""
COMPILED = (
    Case("llama3_8b decode, context 512", ((1, 512),), *_LLAMA3, num_layers=1),
    *(
        Case(f"{model} {phase}", sequences, *heads, num_layers=1, kv_dtype=kv_dtype)
        for model, heads, kv_dtype in (
            ("llama3_8b", _LLAMA3, None),
            ("qwen3_0.6b", (16, 8, 128), None),
            ("smollm2_135m", _SMOLLM2, None),
            ("llama3_8b int8", _LLAMA3, torch.int8),
            ("llama3_8b fp8", _LLAMA3, torch.float8_e4m3fn),
        )
        for phase, sequences in (
            ("decode, context 4k", ((1, 4096),)),
            ("prompt", ((4096, 4096),)),
        )
    ),
    # Its prompts spill 24 bytes of registers per thread on sm_100 (`docs/gpu_results.md`).
    Case("gpt_oss decode, context 4k", ((1, 4096),), *_GPT_OSS, num_layers=1, sinks=(0.0, 2.0)),
)
"""Launches that `kernels.tools.compile` compiles ahead of time."""


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op; slots past a context hold numbers that must not matter."""
    num_blocks = [-(-context // case.block_size) for _, context in case.sequences]
    tables = _block_tables(num_blocks)
    shape = (case.num_kv_heads, case.block_size, case.head_dim)
    pool = torch.randn(sum(num_blocks) + 1, case.num_layers, case.parts, *shape, device=device)
    for (_, context), table, used in zip(case.sequences, tables, num_blocks, strict=True):
        pool[table[used - 1], :, :, :, context - (used - 1) * case.block_size :] = 1e4
    num_queries = [queries for queries, _ in case.sequences]
    width = case.num_heads * case.head_dim
    packed = torch.randn(sum(num_queries), width + 8, device=device).to(dtype)
    batch = PagedBatch.from_host(
        tables,
        np.array([context for _, context in case.sequences], dtype=np.int32),
        np.concatenate(([0], np.cumsum(num_queries))).astype(np.int32),
        num_queries.count(1),
        device,
        _key_ends(case),
    )
    scales = None
    if case.kv_dtype is None:
        pool = pool.to(dtype)
    else:
        pool, scales = quantised(pool, case.kv_dtype)
    layer = case.num_layers // 2
    return {
        "q": packed[:, :width].view(-1, case.num_heads, case.head_dim),
        "kv_cache": pool[:, layer],
        "batch": batch,
        "scale": case.head_dim**-0.5,
        "window": case.window,
        "soft_cap": case.soft_cap,
        "kv_scales": None if scales is None else scales[:, layer],
        "sinks": _sinks(case, device),
        "aligned": case.aligned,
    }


def _sinks(case: Case, device: torch.device) -> Tensor | None:
    if case.sinks is None:
        return None
    mean, spread = case.sinks
    return torch.randn(case.num_heads, device=device) * spread + mean


def _key_ends(case: Case) -> np.ndarray[tuple[int], np.dtype[np.int32]] | None:
    """The end of each row's keys, if some see further than to their own."""
    if not case.both_ways:
        return None
    ends = []
    for queries, context in case.sequences:
        at = np.arange(context - queries, context)
        past = (at - 3) // case.both_ways
        # Every second stretch; one that the chunk cuts off ends with it.
        stretch_ends = np.minimum(3 + (past + 1) * case.both_ways, context)
        ends.append(np.where(past % 2 == 0, stretch_ends, at + 1))
    return np.concatenate(ends).astype(np.int32)


def quantised(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Pack along the last dimension: int8 or float8_e4m3fn numbers, and one fp32 scale for each."""
    scales = x.abs().amax(-1).float() / LARGEST[dtype]
    packed = x / scales.unsqueeze(-1)
    return (packed.round() if dtype is torch.int8 else packed).to(dtype), scales


def _block_tables(num_blocks: list[int]) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
    """Make tables of shuffled blocks, none shared; unused entries repeat the first one."""
    ids = torch.randperm(sum(num_blocks) + 1).tolist()
    tables = np.empty((len(num_blocks), max(num_blocks, default=0)), dtype=np.int32)
    for row, used in zip(tables, num_blocks, strict=True):
        row[:used] = [ids.pop() for _ in range(used)]
        row[used:] = row[0]
    return tables


def outputs(result: Tensor, inputs: dict[str, object]) -> tuple[object, ...]:
    """Everything the op wrote."""
    return (result,)


def work(inputs: dict[str, Any]) -> Work:
    """The work: each sequence's visible keys and values once; two products per visible pair."""
    q, kv_cache, batch = inputs["q"], inputs["kv_cache"], inputs["batch"]
    window: int | None = inputs["window"]
    read = pairs = 0
    for queries, context in zip(
        np.diff(batch.host_cu_seqlens_q).tolist(), batch.host_context_lens.tolist(), strict=True
    ):
        seen = [min(end, window or end) for end in range(context - queries + 1, context + 1)]
        read += min(context, queries - 1 + (window or context))
        pairs += sum(seen)
    stored, head_dim = kv_cache.shape[1] * kv_cache.shape[2], kv_cache.shape[4]
    slot = stored * head_dim * kv_cache.element_size()
    if inputs["kv_scales"] is not None:
        slot += stored * 4
    return Work(2 * num_bytes(q) + read * slot, 4 * pairs * q.shape[1] * head_dim)
