"""Inputs for `attention`: layers of real denoisers, odd sizes, strided views, sharp scores."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.shared.work import Work, num_bytes

TOLERANCE = {
    torch.float32: 2e-5,
    # Weights are rounded before they are multiplied by the values, by up to 2^-8 of each.
    torch.bfloat16: 6e-3,
    torch.float16: 8e-4,
}


@dataclass(frozen=True)
class Case:
    """`rows` of `num_heads` heads."""

    name: str
    rows: int
    num_heads: int
    num_queries: int
    num_keys: int
    head_dim: int
    interleaved: bool = True
    """Whether heads are slices of the last dimension, as projections leave them."""
    scale: float = 1.0
    slack: float = 0.0
    """Added to the tolerance."""


CASES = (
    Case("shapes_self", 3, 2, 256, 256, 32),
    Case("shapes_cross", 16, 4, 16, 32, 32),
    Case("sd15_self", 2, 8, 300, 300, 40),
    Case("sd15_cross", 2, 2, 64, 77, 160),
    Case("sdxl_cross", 2, 2, 37, 77, 64),
    Case("wide_head", 1, 1, 5, 9, 256),
    Case("decoder", 1, 1, 70, 70, 512),
    # The CPU kernel takes as many keys at a time as fit the cache, 64 of such wide ones in fp32.
    Case("many_blocks", 1, 2, 11, 700, 512, scale=4.0, slack=1e-5),
    Case("many_narrow_keys", 1, 1, 9, 2085, 33),
    Case("odd", 2, 3, 7, 5, 33),
    Case("one_of_each", 1, 1, 1, 1, 1),
    Case("heads_first", 2, 3, 6, 18, 48, interleaved=False),
    # Scores reach 140: their rounding alone changes weights by 3e-5, in 1 of 1000 draws.
    Case("sharp", 2, 2, 33, 65, 64, scale=30.0, slack=8e-5),
    Case("no_rows", 0, 2, 4, 4, 32),
    Case("no_queries", 2, 2, 0, 4, 32),
)
BENCHMARKS = {
    "cpu": (
        Case("shapes self 32 rows", 32, 2, 256, 256, 32),
        Case("sd15 self 2 rows", 2, 8, 1024, 1024, 80),
        Case("sd15 self 2 rows, 512 px", 2, 8, 4096, 4096, 40),
        Case("sd15 cross 2 rows", 2, 8, 4096, 77, 40),
        Case("sd15 decoder, 512 px", 1, 1, 4096, 4096, 512),
    ),
    "cuda": (
        Case("sd15 self 8 rows", 8, 8, 4096, 4096, 40),
        Case("sdxl self 8 rows", 8, 10, 4096, 4096, 64),
        Case("sdxl cross 8 rows", 8, 10, 4096, 77, 64),
    ),
}
"""Shapes of real models by type of device; `kernels.tools.bench` times them."""


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    query = _heads(case, case.num_queries, dtype, device)
    return {
        "query": query * case.scale,
        "key": _heads(case, case.num_keys, dtype, device),
        "value": _heads(case, case.num_keys, dtype, device),
    }


def _heads(case: Case, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    if case.interleaved:
        states = torch.randn(case.rows, length, case.num_heads, case.head_dim, device=device)
        return states.to(dtype).transpose(1, 2)
    return torch.randn(case.rows, case.num_heads, length, case.head_dim, device=device).to(dtype)


def work(inputs: dict[str, Any]) -> Work:
    """Two products: of queries with keys, of weights with values."""
    query, key = inputs["query"], inputs["key"]
    return Work(num_bytes(inputs) + num_bytes(query), 4 * query.numel() * key.shape[2])
