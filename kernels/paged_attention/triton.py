"""Split-KV decode and varlen prefill over the block table, for NVIDIA GPUs.

A mixed batch takes three launches: decodes, the joining of their splits, prompt chunks. The batch's
host arrays size them; nothing waits for the device, and a kernel's reads of a sequence depend on
the device's arrays alone: a recorded CUDA graph of decodes serves all contexts up to those that it
was recorded with.

A token's result has the same bits in every batch, chunk and step: see `triton_tile`. This needs the
same matrix instructions for decodes and prompts. Up to sm_89 those are of one kind for every tile.
Later GPUs have another one for tiles of 64 rows and more, so there decodes fill up their tiles to
64 rows, which costs arithmetic but no memory traffic.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels import _triton
from kernels.paged_attention.paged_batch import WIDEST_IN_TRITON, Int32Array, PagedBatch
from kernels.paged_attention.triton_decode import (
    _paged_attention_decode_kernel,
    _paged_attention_join_kernel,
)
from kernels.paged_attention.triton_prefill import _paged_attention_prefill_kernel
from kernels.shared.stages import dtype_name, num_stages
from kernels.shared.transfer import to_device

TENSOR_CORES = ("_paged_attention_decode_kernel", "_paged_attention_prefill_kernel")
SPLIT = 512
"""Keys of a split, by position in the sequence. Part of the results: it changes their last bits."""
JOIN_UNROLL = 8
PACKED = (torch.int8, torch.float8_e4m3fn)


@dataclass(frozen=True, slots=True)
class Tiles:
    """Sizes that kernels are compiled for. `keys` and `dims` change the results' last bits."""

    decode_rows: int
    prefill_rows: int
    keys: int
    dims: int
    decode_warps: int
    prefill_warps: int
    num_stages: int

    def stages_for(self, phase: str, kv_dtype: torch.dtype, rows: int) -> int:
        """Return the number of stages measured on this GPU, or `num_stages`."""
        name = f"paged_attention {phase} {dtype_name(kv_dtype)} {rows}x{self.keys}x{self.dims}"
        return num_stages(name, self.num_stages)


def supports(
    q: Tensor,
    kv_cache: Tensor,
    batch: PagedBatch,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    kv_scales: Tensor | None = None,
    sinks: Tensor | None = None,
    aligned: bool = False,
) -> bool:
    """Supports head dims up to 256 on NVIDIA GPUs."""
    _, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    run = block_size * head_dim
    tensors = (q, kv_cache) if kv_scales is None else (q, kv_cache, kv_scales)
    return (
        _triton.runs_on(*tensors)
        and head_dim <= WIDEST_IN_TRITON
        and q.stride(2) == 1
        and kv_cache.stride()[1:] == (num_kv_heads * run, run, head_dim, 1)
        and (
            kv_scales is None
            or kv_scales.stride()[1:] == (num_kv_heads * block_size, block_size, 1)
        )
        and (kv_cache.dtype is q.dtype if kv_scales is None else kv_cache.dtype in PACKED)
        and scale > 0
    )


def paged_attention(
    q: Tensor,
    kv_cache: Tensor,
    batch: PagedBatch,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    kv_scales: Tensor | None = None,
    sinks: Tensor | None = None,
    aligned: bool = False,
) -> Tensor:
    """See `kernels.paged_attention`."""
    num_tokens, num_heads, head_dim = q.shape
    _, parts, num_kv_heads, block_size, _ = kv_cache.shape
    capability = _triton.capability(q.device)
    if kv_cache.dtype is torch.float8_e4m3fn and capability < 89:
        kv_cache = kv_cache.view(torch.uint8)
    group = num_heads // num_kv_heads
    tiles = _tiles(capability, head_dim, group, q.dtype, kv_scales is not None)
    out = q.new_empty(num_tokens, num_heads * head_dim)
    inputs = {
        "q_ptr": q,
        "q_row_stride": q.stride(0),
        "q_head_stride": q.stride(1),
        "kv_ptr": kv_cache,
        "kv_block_stride": kv_cache.stride(0),
        "scales_ptr": kv_scales,
        "scales_block_stride": 0 if kv_scales is None else kv_scales.stride(0),
        "tables_ptr": batch.block_tables,
        "table_stride": batch.block_tables.stride(0),
        "context_lens_ptr": batch.context_lens,
        "sinks_ptr": sinks,
        "out_ptr": out,
        "window": window,
        "ALIGNED": aligned,
        # The weights are powers of two; until then a bent score is within ±1.
        "bend": None if soft_cap is None else 2 * scale / soft_cap * math.log2(math.e),
        "steepness": (scale if soft_cap is None else soft_cap) * math.log2(math.e),
    }
    constants = _constants(num_heads, parts, num_kv_heads, head_dim, block_size, tiles)
    if batch.num_decodes:
        _decode(inputs, constants, batch, tiles)
    if batch.num_decodes < len(batch.host_context_lens):
        _prefill(inputs, constants, batch, tiles)
    return out


def _decode(
    inputs: dict[str, Any], constants: dict[str, int], batch: PagedBatch, tiles: Tiles
) -> None:
    num_heads, head_dim = constants["NUM_HEADS"], constants["HEAD_DIM"]
    longest = int(batch.host_context_lens[: batch.num_decodes].max())
    num_splits = _num_splits(longest, inputs["window"])
    values = weights = None
    if num_splits > 1:
        shape = (batch.num_decodes, num_heads, num_splits)
        values = inputs["q_ptr"].new_empty(*shape, head_dim, dtype=torch.float32)
        weights = inputs["q_ptr"].new_empty(*shape, 2, dtype=torch.float32)
    grid = (constants["NUM_KV_HEADS"], batch.num_decodes, num_splits)
    _paged_attention_decode_kernel[grid](
        **inputs,
        values_ptr=values,
        weights_ptr=weights,
        num_splits=num_splits,
        **constants,
        BLOCK_M=tiles.decode_rows,
        num_warps=tiles.decode_warps,
        num_stages=tiles.stages_for("decode", inputs["kv_ptr"].dtype, tiles.decode_rows),
        enable_fp_fusion=False,
    )
    if num_splits > 1:
        _paged_attention_join_kernel[(num_heads, batch.num_decodes)](
            values_ptr=values,
            weights_ptr=weights,
            num_splits=num_splits,
            **{name: inputs[name] for name in JOIN_INPUTS},
            **{name: constants[name] for name in JOIN_CONSTANTS},
            PACKED=inputs["scales_ptr"] is not None,
            UNROLL=JOIN_UNROLL,
            num_warps=1,
            enable_fp_fusion=False,
        )


JOIN_INPUTS = ("context_lens_ptr", "sinks_ptr", "out_ptr", "window", "steepness", "ALIGNED")
JOIN_CONSTANTS = ("NUM_HEADS", "HEAD_DIM", "SPLIT", "BLOCK_D")


def _prefill(
    inputs: dict[str, Any], constants: dict[str, int], batch: PagedBatch, tiles: Tiles
) -> None:
    queries = tiles.prefill_rows // (constants["NUM_HEADS"] // constants["NUM_KV_HEADS"])
    plan = batch.plans.get(("prefill_tiles", queries))
    if plan is None:
        plan = to_device([_prefill_tiles(batch, queries)], batch.context_lens.device)[0]
        batch.plans["prefill_tiles", queries] = plan
    _paged_attention_prefill_kernel[(constants["NUM_KV_HEADS"], len(plan))](
        **inputs,
        cu_seqlens_q_ptr=batch.cu_seqlens_q,
        key_ends_ptr=batch.key_ends,
        tiles_ptr=plan,
        **constants,
        BLOCK_M=tiles.prefill_rows,
        num_warps=tiles.prefill_warps,
        num_stages=tiles.stages_for("prefill", inputs["kv_ptr"].dtype, tiles.prefill_rows),
        enable_fp_fusion=False,
    )


def _num_splits(longest: int, window: int | None) -> int:
    """Return the most splits that a sequence may touch."""
    num_splits = -(-longest // SPLIT)
    # A window may begin with a split's last key.
    return num_splits if window is None else min(num_splits, -(-(window - 1) // SPLIT) + 1)


def _prefill_tiles(batch: PagedBatch, queries: int) -> Int32Array:
    """Return [tiles, 2], each tile's sequence and its first query there; those with most keys come
    first."""
    num_queries = np.diff(batch.host_cu_seqlens_q)[batch.num_decodes :]
    num_tiles = -(-num_queries // queries)
    sequences = np.repeat(np.arange(batch.num_decodes, len(batch.host_context_lens)), num_tiles)
    index = np.arange(num_tiles.sum()) - np.repeat(np.cumsum(num_tiles) - num_tiles, num_tiles)
    num_cached = batch.host_context_lens[batch.num_decodes :] - num_queries
    first = index * queries
    order = np.argsort(-(np.repeat(num_cached, num_tiles) + first), kind="stable")
    return np.stack([sequences, first], 1)[order].astype(np.int32)


@functools.cache
def _tiles(capability: int, head_dim: int, group: int, dtype: torch.dtype, packed: bool) -> Tiles:
    """Return sizes that depend on hardware, model and dtype, never on the batch."""
    dims = max(16, _power_of_two(head_dim))
    group = _power_of_two(group)
    small = dims * dtype.itemsize <= 256
    # Warps are added where a prompt's two sums of values would not fit the registers.
    if not small:
        decode_warps = prefill_warps = 8
    elif 90 <= capability < 100:
        # On these GPUs the number of warps decides the shape of matrix instructions.
        decode_warps = prefill_warps = 8 if packed and dims > 64 else 4
    else:
        decode_warps, prefill_warps = 4, 8 if dims > 64 else 4
    return Tiles(
        decode_rows=max(16 if capability < 90 else 64, group),
        prefill_rows=max(64, group),
        keys=64 if small else 32,
        dims=dims,
        decode_warps=decode_warps,
        prefill_warps=prefill_warps,
        num_stages=5 if packed or capability < 90 else 3,
    )


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _constants(
    num_heads: int, parts: int, num_kv_heads: int, head_dim: int, block_size: int, tiles: Tiles
) -> dict[str, int]:
    return {
        "NUM_HEADS": num_heads,
        "NUM_KV_HEADS": num_kv_heads,
        "PARTS": parts,
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": block_size,
        "SPLIT": SPLIT,
        "BLOCK_N": tiles.keys,
        "BLOCK_D": tiles.dims,
    }
