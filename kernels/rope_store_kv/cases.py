"""Inputs for `rope_store_kv`: heads as views of packed q, k, v, and one layer of a pool."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.shared.tolerances import FLOATS
from kernels.shared.work import Work, num_bytes

# Some fp32 operations, and with norms a sum.
TOLERANCE = dict.fromkeys(FLOATS, 1e-5)


@dataclass(frozen=True)
class Case:
    """`num_tokens` new rows for a pool of `num_blocks` blocks and `num_layers` layers."""

    name: str
    num_tokens: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int = 16
    num_blocks: int = 9
    num_layers: int = 3
    rotary_dim: int | None = None
    """The rotated elements of a head; None for all."""
    qk_norm: bool = False
    fp32_norms: bool = False
    parts: int = 2
    """1 if keys alone are stored."""
    tail: int = 0
    """Elements after each token's heads."""
    cache_dtype: torch.dtype | None = None
    """The cache's dtype; None for that of the heads."""
    zeros: bool = False
    """Whether some heads are zero."""

    @property
    def slack(self) -> float:
        """The added tolerance: where fp32 differs in the last bit, a number between two steps of a
        quantised cache may become either."""
        return {torch.int8: 0.1, torch.float8_e4m3fn: 0.13}.get(self.cache_dtype, 0.0)  # type: ignore[arg-type]


INT8, FLOAT8 = torch.int8, torch.float8_e4m3fn
CASES = (
    Case("smollm2_decode", 1, 9, 3, 64),
    Case("smollm2_chunk", 41, 9, 3, 64),
    Case("llama_decode", 3, 32, 8, 128),
    Case("llama_chunk", 19, 32, 8, 128, block_size=32),
    Case("qwen3_decode", 1, 16, 8, 128, qk_norm=True),
    Case("qwen3_chunk", 17, 16, 8, 128, qk_norm=True, fp32_norms=True),
    Case("partial_rotary", 21, 4, 2, 80, rotary_dim=32, tail=5),
    Case("partial_rotary_norm", 21, 4, 2, 24, rotary_dim=18, qk_norm=True, tail=3),
    Case("not_rotated", 5, 4, 2, 16, rotary_dim=0),
    Case("one_kv_head", 8, 7, 1, 96),
    Case("block_of_one", 5, 4, 2, 8, block_size=1),
    Case("odd", 23, 7, 5, 7, block_size=7, rotary_dim=6, qk_norm=True, num_layers=1),
    Case("smallest", 5, 1, 1, 2),
    Case("queries_alone", 5, 6, 0, 16, qk_norm=True),
    Case("queries_alone_int8", 5, 6, 0, 16, qk_norm=True, cache_dtype=INT8),
    Case("no_tokens", 0, 4, 2, 16),
    Case("keys_alone", 9, 16, 1, 576, rotary_dim=64, parts=1),
    Case("keys_alone_int8", 9, 4, 2, 24, cache_dtype=INT8, rotary_dim=8, parts=1, tail=3),
    Case("int8", 13, 9, 3, 64, cache_dtype=INT8, zeros=True),
    Case("int8_norm", 9, 16, 8, 128, cache_dtype=INT8, qk_norm=True),
    Case("int8_odd", 13, 6, 3, 7, cache_dtype=INT8, rotary_dim=4, block_size=5),
    Case("float8", 13, 9, 3, 64, cache_dtype=FLOAT8, zeros=True),
    Case("float8_norm", 9, 16, 8, 128, cache_dtype=FLOAT8, qk_norm=True),
)
BENCHMARKS = {
    "cpu": (
        Case("smollm2 decode 1", 1, 9, 3, 64),
        Case("smollm2 decode 32", 32, 9, 3, 64),
        Case("smollm2 prompt 512", 512, 9, 3, 64, num_blocks=32),
        Case("qwen3_0.6b decode 32", 32, 16, 8, 128, qk_norm=True),
    ),
    "cuda": (
        Case("llama3_8b decode 64", 64, 32, 8, 128, num_blocks=64),
        Case("llama3_8b prompt 8192", 8192, 32, 8, 128, num_blocks=512),
        Case("qwen3_0.6b prompt 8192", 8192, 16, 8, 128, num_blocks=512, qk_norm=True),
        Case("llama3_8b prompt 8192, int8", 8192, 32, 8, 128, num_blocks=512, cache_dtype=INT8),
    ),
}
"""Shapes of real models by type of device; `kernels.tools.bench` times them."""
COMPILED = (
    *BENCHMARKS["cuda"],
    Case("llama3_8b decode 64, fp8", 64, 32, 8, 128, num_blocks=64, cache_dtype=FLOAT8),
    Case("smollm2 decode 1", 1, 9, 3, 64),
)
"""Launches that `kernels.tools.compile` compiles ahead of time."""


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    num_all, dim = case.num_heads + case.parts * case.num_kv_heads, case.head_dim
    packed = torch.randn(case.num_tokens, num_all * dim + case.tail, device=device)
    heads = packed.to(dtype)[:, : num_all * dim].view(-1, num_all, dim)
    if case.zeros:
        heads[::3, -1] = 0
        heads[::4, case.num_heads] = 0
    rotary_dim = case.head_dim if case.rotary_dim is None else case.rotary_dim
    angles = torch.rand(301, rotary_dim // 2, device=device) * 6.3
    slots = torch.randperm(case.num_blocks * case.block_size, device=device)[: case.num_tokens]
    return {
        "heads": heads,
        "positions": torch.randint(301, (case.num_tokens,), device=device),
        "cos_sin": torch.cat((angles.cos(), angles.sin()), -1),
        "slot_mapping": (slots // case.block_size, slots % case.block_size),
        "num_heads": case.num_heads,
        "q_norm": _norm(case, dtype, device),
        "k_norm": _norm(case, dtype, device),
    } | _pool(case, dtype, device)


def _pool(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Make one layer's cache, a view of a pool of all layers that already holds numbers."""
    heads = (case.parts, case.num_kv_heads, case.block_size, case.head_dim)
    shape = (case.num_blocks, case.num_layers, *heads)
    layer = case.num_layers // 2
    if case.cache_dtype is None:
        return {"kv_cache": torch.randn(shape, device=device).to(dtype)[:, layer]}
    pool = torch.randint(-100, 100, shape, dtype=torch.int8, device=device)
    scales = torch.rand(shape[:-1], device=device)
    return {
        "kv_cache": pool.to(case.cache_dtype)[:, layer],
        "kv_scales": scales[:, layer],
    }


def _norm(case: Case, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    if not case.qk_norm:
        return None
    weight = torch.rand(case.head_dim, device=device).add_(0.5)
    return weight if case.fp32_norms else weight.to(dtype)


def outputs(result: None, inputs: dict[str, object]) -> tuple[object, ...]:
    """The queries, the elements after each token's heads, and the whole pool: everything that was
    written, or must not have been. Quantised caches are returned as the numbers that they stand
    for, with an empty view to say that they may be written to."""
    heads, cache, num_heads = inputs["heads"], inputs["kv_cache"], inputs["num_heads"]
    assert isinstance(heads, Tensor) and isinstance(cache, Tensor) and isinstance(num_heads, int)
    written = (heads[:, :num_heads], _whole(heads)[:, heads.shape[1] * heads.shape[2] :])
    scales = inputs.get("kv_scales")
    if not isinstance(scales, Tensor):
        return (*written, _whole(cache))
    numbers = _whole(cache).float() * _whole(scales)[..., None]
    return (*written, numbers, _whole(scales), _whole(cache)[:0])


def _whole(view: Tensor) -> Tensor:
    """Return the tensor that a view is part of, [rows, ...]."""
    base = view if view._base is None else view._base
    return base if base.dim() > 1 else base.view(len(view), -1)


def work(inputs: dict[str, Any]) -> Work:
    """The work: all heads and their angles are read; queries, and one slot for each row, are
    written."""
    heads, cache, num_heads = inputs["heads"], inputs["kv_cache"], inputs["num_heads"]
    slots = num_bytes(cache[0, :, :, 0])
    if "kv_scales" in inputs:
        slots += num_bytes(inputs["kv_scales"][0, :, :, 0])
    angles = num_bytes(inputs["cos_sin"][0])
    return Work(num_bytes((heads, heads[:, :num_heads])) + len(heads) * (angles + slots))
