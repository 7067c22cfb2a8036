"""Inputs for `store_kv`: one layer of a pool, rows as views of packed q, k, v."""

from dataclasses import dataclass

import torch

TOLERANCE = dict.fromkeys((torch.float32, torch.bfloat16, torch.float16), 0.0)
"""Copies are exact."""


@dataclass(frozen=True)
class Case:
    """`num_tokens` new rows for a pool of `num_blocks` blocks and `num_layers` layers."""

    name: str
    num_tokens: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    num_blocks: int
    num_layers: int = 3


CASES = (
    Case("smollm2_decode", 1, 3, 64, 16, 8),
    Case("smollm2_chunk", 109, 3, 64, 16, 9),
    Case("llama_chunk", 257, 8, 128, 32, 10),
    Case("block_of_one", 5, 2, 8, 1, 7),
    Case("odd", 63, 5, 6, 7, 9, num_layers=1),
    Case("no_tokens", 0, 2, 16, 4, 3),
)


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    shape = (case.num_kv_heads, case.block_size, case.head_dim)
    pool = torch.randn(case.num_blocks, case.num_layers, 2, *shape, device=device).to(dtype)
    width = case.num_kv_heads * case.head_dim
    packed = torch.randn(case.num_tokens, 4 * width, device=device).to(dtype)
    slots = torch.randperm(case.num_blocks * case.block_size, device=device)[: case.num_tokens]
    heads = (case.num_tokens, 2, case.num_kv_heads, case.head_dim)
    return {
        "kv": packed[:, 2 * width :].view(heads),
        "kv_cache": pool[:, case.num_layers // 2],
        "slot_mapping": (slots // case.block_size, slots % case.block_size),
    }


def outputs(result: None, inputs: dict[str, object]) -> tuple[object, ...]:
    """The whole pool: what was written, and what must not have been."""
    cache = inputs["kv_cache"]
    assert isinstance(cache, torch.Tensor)
    return (cache._base,)
