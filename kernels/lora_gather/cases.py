"""Inputs for `lora_gather`: decode with many adapters, prefill with one, ranks, shards, strided
rows."""

from dataclasses import dataclass
from typing import Any

import torch

from kernels.lora_gather.packed import pack
from kernels.lora_gather.shard import LoraShard
from kernels.shared.tolerances import FLOATS, ROUNDED_SUMS
from kernels.shared.work import Work, num_bytes

# Sums in fp32 of up to 4096 products in another order.
TOLERANCE = dict.fromkeys(FLOATS, 2e-5)
SLACK = {
    # PyTorch rounds both products and the update.
    "composed": ROUNDED_SUMS,
}


@dataclass(frozen=True)
class Case:
    """`rows` with random adapters; one number above `adapters` stands for none."""

    name: str
    rows: int
    outputs: int
    inputs: int
    rank: int = 16
    adapters: int = 4
    strided: bool = False
    """Whether rows of x and y are views of wider ones."""
    sorted: bool = False
    """Whether rows of a request are together, as in a prefill."""
    packed: bool = False
    """Whether adapters are packed in 8 bits."""
    more: tuple[tuple[int, int], ...] = ()
    """Outputs and rank of further shards. Before each there is an output without a shard."""

    @property
    def slack(self) -> float:
        """The added tolerance: CPUs round rows, and A's products with them, to 16 bits where
        adapters are packed."""
        return 2e-3 if self.packed else 0.0


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
    Case("shards", 9, 64, 96, more=((24, 3), (40, 20))),
    Case("shards_of_one_prompt", 21, 64, 96, adapters=1, sorted=True, more=((24, 3),)),
    Case("odd", 7, 37, 131, rank=5, adapters=3),
    Case("strided", 17, 40, 96, strided=True),
    Case("packed", 33, 576, 576, packed=True),
    Case("packed_odd", 7, 37, 131, rank=5, adapters=3, packed=True, strided=True, more=((70, 1),)),
    Case("packed_prompt", 130, 192, 576, adapters=1, sorted=True, packed=True),
    Case("packed_wide", 9, 4500, 64, rank=256, packed=True),
    Case("packed_one_row", 1, 100, 30, rank=200, packed=True),
    Case("only_without", 3, 40, 96, adapters=0),
    Case("no_rows", 0, 40, 96),
)
REFUSED = {"triton": {case.name for case in CASES if case.packed}}
BENCHMARKS = {
    "cpu": (
        Case("smollm2 qkv decode 32", 32, 576, 576, adapters=16, more=((192, 16), (192, 16))),
        Case(
            *("smollm2 qkv decode 32, 8 bits", 32, 576, 576),
            adapters=16,
            packed=True,
            more=((192, 16), (192, 16)),
        ),
        Case(
            *("smollm2 qkv prompt 512", 512, 576, 576),
            adapters=1,
            sorted=True,
            more=((192, 16), (192, 16)),
        ),
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
    sizes = ((case.outputs, case.rank), *case.more)
    shards: list[LoraShard] = []
    width = 0
    for outputs, rank in sizes:
        first = width + bool(shards)
        shards.append(_shard(case, first, outputs, rank, dtype, device))
        width = first + outputs
    y = torch.randn(case.rows, width * factor, device=device).to(dtype)
    x = torch.randn(case.rows, case.inputs * factor, device=device).to(dtype)
    ids = torch.randint(-1, case.adapters, (case.rows,), dtype=torch.int32, device=device)
    return {
        "y": y[:, :width],
        "x": x[:, : case.inputs],
        "shards": tuple(shards),
        "adapter_ids": ids.sort().values if case.sorted else ids,
    }


def _shard(
    case: Case, first: int, outputs: int, rank: int, dtype: torch.dtype, device: torch.device
) -> LoraShard:
    num_stored = max(1, case.adapters)
    a = torch.randn(num_stored, rank, case.inputs, device=device) / case.inputs**0.5
    b = torch.randn(num_stored, rank, outputs, device=device) / rank**0.5
    a, b = pack(a, b) if case.packed else (a.to(dtype), b.to(dtype))
    return LoraShard(first, outputs, a, b, torch.rand(num_stored, device=device) + 0.5)


def outputs(result: None, inputs: dict[str, object]) -> tuple[object, ...]:
    """Everything the op wrote."""
    return (inputs["y"],)


def work(inputs: dict[str, Any]) -> Work:
    """The work: two thin products for each row with an adapter; each used adapter is read once."""
    y, x, shards, ids = (inputs[name] for name in ("y", "x", "shards", "adapter_ids"))
    used = ids[ids >= 0]
    num_used = torch.unique(used).numel()
    read = num_bytes((x, y, y))
    operations = 0
    for shard in shards:
        read += num_bytes((shard.a[0], shard.b[0])) * num_used
        operations += 2 * len(used) * shard.rank * (x.shape[1] + shard.outputs)
    return Work(read, operations)
