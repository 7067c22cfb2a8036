"""The kernels' times as shares of what this GPU was measured to do, beside the targets."""

from dataclasses import asdict
from typing import Any

import torch

import kernels
from kernels.registry import Op
from kernels.tools import ceilings
from kernels.tools.bench import timings_of_case
from kernels.tools.ceilings import Ceilings
from tools.gpu_exam.place import Place
from tools.gpu_exam.record import Facts, Record

TARGETS = {
    ("paged_attention", "llama3_8b decode 64, context 4k"): 0.85,
    ("linear_gguf", "llama3_8b gate_up Q4_K 1"): 0.8,
    ("linear_gguf", "llama3_8b gate_up Q6_K 1"): 0.8,
    ("linear_gguf", "llama3_8b gate_up Q8_0 1"): 0.8,
    ("linear_experts", "qwen3_30b gate_up 1 q4_k"): 0.7,
    ("linear_experts", "qwen3_30b gate_up 64 q4_k"): 0.7,
    ("linear_w4a16", "llama3_8b gate_up 1"): 0.8,
    ("rms_norm", "llama3_8b prompt 8192"): 0.85,
    ("add_rms_norm", "llama3_8b prompt 8192"): 0.85,
    ("rope_store_kv", "llama3_8b prompt 8192"): 0.85,
    ("silu_mul", "llama3_8b prompt 4096"): 0.85,
}
"""Shares of the copy bandwidth, as in docs/gpu_results.md."""
CEILINGS = "ceilings"
REHEARSED = Ceilings(copy_one_thread=1.0, copy=1.0, read=1.0, gemm_fp32=1.0, gemm_bf16=1.0)


class MissedTarget(AssertionError):
    """A kernel is slower than it should be."""


def examine(record: Record, place: Place, shard: int, num_shards: int) -> None:
    """Time the kernels with a target, then all others."""
    facts = record.run(CEILINGS, lambda: measured_ceilings(place))
    found = REHEARSED if place.is_rehearsal else Ceilings(**facts[CEILINGS])
    for op, case in timed_cases(place.is_rehearsal):
        with place.examined():
            record.run(
                f"{op.name} {case.name}",
                lambda op=op, case=case: share(op, case, found, place),  # type: ignore[misc]
            )


def measured_ceilings(place: Place) -> Facts:
    return {CEILINGS: asdict(REHEARSED if place.is_rehearsal else ceilings.measure(place.device))}


def timed_cases(is_rehearsal: bool) -> list[tuple[Op[..., Any], Any]]:
    """The benchmarks of a GPU, those with targets first. A rehearsal has a small case of one op."""
    triton = [op for op in kernels.OPS if "triton" in op.implementations()]
    if is_rehearsal:
        return [(triton[0], triton[0].cases.CASES[0])]
    found = [(op, case) for op in triton for case in op.cases.BENCHMARKS["cuda"]]
    return sorted(found, key=lambda pair: (pair[0].name, pair[1].name) not in TARGETS)


def share(op: Op[..., Any], case: Any, found: Ceilings, place: Place) -> Facts:
    """Time a Triton kernel.

    Raises:
        MissedTarget: it moves a smaller share of what copying moves than it should.
    """
    (timing,) = timings_of_case(op, case, torch.bfloat16, place.device, only="triton")
    of_copy = timing.bytes / timing.seconds / 1e9 / found.copy
    of_gemm = timing.flops / timing.seconds / 1e9 / found.gemm_bf16
    target = TARGETS.get((op.name, case.name))
    facts = {"call_s": timing.seconds, "of_copy": of_copy, "of_gemm": of_gemm, "target": target}
    if target is not None and of_copy < target:
        raise MissedTarget(f"{of_copy:.0%} of copy; the target is {target:.0%}; {facts}")
    return facts
