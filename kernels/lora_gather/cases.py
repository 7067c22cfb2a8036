"""Inputs for `lora_gather`: decode with many adapters, prefill with one, ranks, strided rows."""

from dataclasses import dataclass
from typing import Any

import torch

from kernels.shared.work import Work, num_bytes

TOLERANCE = {
    # Sums in fp32 of up to 4096 products in another order.
    torch.float32: 2e-5,
    torch.bfloat16: 2e-5,
    torch.float16: 2e-5,
}
SLACK = {
    # PyTorch rounds both products and the update.
    "composed": {torch.bfloat16: 1.6e-2, torch.float16: 2e-3},
}


@dataclass(frozen=True)
class Case:
    """`rows` with adapters at random; one more in `adapters` stands for none."""

    name: str
    rows: int
    outputs: int
    inputs: int
    rank: int = 16
    adapters: int = 4
    strided: bool = False
    """Rows of x and y are views of wider ones."""
    sorted: bool = False
    """Rows of a request are together, as in a prefill."""


CASES = (
    Case("llama3_decode", 9, 200, 4096, adapters=8),
    Case("smollm2_decode", 33, 576, 576),
    Case("smollm2_prefill", 130, 192, 576, rank=8, sorted=True),
    Case("one_row", 1, 64, 64),
    Case("rank_1", 5, 40, 96, rank=1),
    Case("rank_12", 5, 40, 96, rank=12),
    Case("rank_64", 19, 72, 128, rank=64),
    Case("rank_128", 19, 72, 128, rank=128),
    Case("rank_200", 5, 40, 96, rank=200),
    Case("rank_256", 19, 72, 128, rank=256),
    Case("odd", 7, 37, 131, rank=5, adapters=3),
    Case("strided", 17, 40, 96, strided=True),
    Case("only_without", 3, 40, 96, adapters=0),
    Case("no_rows", 0, 40, 96),
)
BENCHMARKS = {
    "cpu": (
        Case("smollm2 qkv decode 32", 32, 960, 576, adapters=8),
        Case("smollm2 qkv prompt 512", 512, 960, 576, adapters=1, sorted=True),
    ),
    "cuda": (
        Case("llama3_8b qkv decode 64", 64, 6144, 4096, adapters=16),
        Case("llama3_8b qkv prompt 2048", 2048, 6144, 4096, adapters=1, sorted=True),
    ),
}
"""Shapes of real models by type of device; `kernels.tools.bench` times them."""
COMPILED = (
    *BENCHMARKS["cuda"],
    Case("llama3_8b qkv decode 64, rank 128", 64, 6144, 4096, rank=128),
    Case("llama3_8b qkv prompt 2048, rank 128", 2048, 6144, 4096, rank=128, sorted=True),
    Case("llama3_8b qkv decode 1, rank 1", 1, 6144, 4096, rank=1),
)
"""Launches that `kernels.tools.compile` compiles ahead of time."""


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    factor = 2 if case.strided else 1
    y = torch.randn(case.rows, case.outputs * factor, device=device).to(dtype)
    x = torch.randn(case.rows, case.inputs * factor, device=device).to(dtype)
    num_stored = max(1, case.adapters)
    a = torch.randn(num_stored, case.rank, case.inputs, device=device) / case.inputs**0.5
    b = torch.randn(num_stored, case.rank, case.outputs, device=device) / case.rank**0.5
    ids = torch.randint(-1, case.adapters, (case.rows,), dtype=torch.int32, device=device)
    return {
        "y": y[:, : case.outputs],
        "x": x[:, : case.inputs],
        "a": a.to(dtype),
        "b": b.to(dtype),
        "adapter_ids": ids.sort().values if case.sorted else ids,
        "scales": torch.rand(num_stored, device=device) + 0.5,
    }


def outputs(result: None, inputs: dict[str, object]) -> tuple[object, ...]:
    """Everything the op wrote."""
    return (inputs["y"],)


def work(inputs: dict[str, Any]) -> Work:
    """Two thin products for each row that has an adapter; each used adapter is read once."""
    y, x, a, b, ids = (inputs[name] for name in ("y", "x", "a", "b", "adapter_ids"))
    used = ids[ids >= 0]
    read = num_bytes((a[0], b[0])) * torch.unique(used).numel() + num_bytes((x, y, y))
    rank, size = a.shape[1:]
    return Work(read, 2 * len(used) * rank * (size + y.shape[1]))
