"""Every Triton kernel against its reference, and against itself: a race shows as other bits."""

import itertools
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import kernels
from kernels.registry import Op
from kernels.tools.check import Mismatch, check
from kernels.tools.guarded_memory import GuardedMemory
from tools.gpu_exam.place import Place
from tools.gpu_exam.record import Facts, Record

DTYPES = (torch.bfloat16, torch.float32, torch.float16)
REPEATS = 20
REHEARSED = {
    "geglu": "odd",
    "gated_delta": "odd",
    "group_norm_silu": "one_group",
    "linear_experts": "gpu_plain_odd",
    "linear_nf4": "odd_outputs",
    "linear_w4a16": "odd_outputs",
    "lora_gather": "odd",
    "sample_tokens": "two_tokens",
    "score_tokens": "all_equal",
}
"""Small cases, where the first one takes long to interpret."""
SANITIZER = "compute-sanitizer"
SANITIZER_S = 200
LAUNCHING = "tools.gpu_exam.launch_each"

Found = tuple[Op[..., Any], Any, torch.dtype]


def examine(record: Record, place: Place, shard: int, num_shards: int) -> None:
    """Check this process's share of the cases."""
    for op, case, dtype in list(found_cases(place.is_rehearsal))[shard::num_shards]:
        name = name_of(op, case, dtype)
        seed = random.getrandbits(31)

        def run(op: Any = op, case: Any = case, dtype: Any = dtype, seed: int = seed) -> Facts:
            sow(seed)
            check(op, "triton", case, dtype, place.device)
            return {"repeats": repeat(op, case, dtype, place)}

        with place.examined():
            facts = record.run(name, run, seed=seed)
            if not facts.get("ok", True):
                sow(seed)
                record.keep(name, op.cases.make_inputs(case, dtype, place.device))


def found_cases(is_rehearsal: bool) -> Iterator[Found]:
    """All cases of Triton's kernels, bf16 first, as models have it. A rehearsal has one of each
    kernel."""
    for dtype in DTYPES[:1] if is_rehearsal else DTYPES:
        for op in kernels.OPS:
            if "triton" not in op.implementations():
                continue
            refused = getattr(op.cases, "REFUSED", {}).get("triton", ())
            cases = [case for case in op.cases.CASES if case.name not in refused]
            if is_rehearsal:
                small = REHEARSED.get(op.name, cases[0].name)
                cases = [case for case in cases if case.name == small]
            tested = getattr(op.cases, "TESTED_DTYPES", DTYPES)
            yield from (
                (op, case, dtype if dtype in tested else tested[0])
                for case in cases
                if dtype in tested or is_rehearsal
            )


def name_of(op: Op[..., Any], case: Any, dtype: torch.dtype) -> str:
    return f"{op.name} {case.name} {str(dtype).removeprefix('torch.')}"


def sow(seed: int) -> None:
    """Make all random inputs the same again."""
    random.seed(seed)
    torch.manual_seed(seed)


def repeat(op: Op[..., Any], case: Any, dtype: torch.dtype, place: Place) -> int:
    """Run a kernel on the same inputs again and again, beside other work. Returns how often.

    Raises:
        Mismatch: two runs differ in a bit.
    """
    inputs = op.cases.make_inputs(case, dtype, place.device)
    function = op.implementations()["triton"].function
    repeats = 1 if place.is_rehearsal else REPEATS
    expected: list[Tensor] | None = None
    for turn in range(repeats + 1):
        memory = GuardedMemory()
        given = memory.copied(inputs)
        if not place.is_rehearsal and turn % 2:
            keep_busy(place.device)
        with memory.holding_allocations():
            result = function(**given)
        found = [bits(output) for output in op.outputs(result, given)]
        expected = expected or found
        for one, (ours, first) in enumerate(zip(found, expected, strict=True)):
            if not torch.equal(ours, first):
                raise Mismatch(f"output {one} has other bits in run {turn}: a race")
    return repeats


def keep_busy(device: torch.device) -> None:
    """Occupy some of the GPU's processors on another stream."""
    with torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
        a = torch.ones(1024, 1024, device=device, dtype=torch.bfloat16)
        for _ in range(4):
            a = a @ a


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def examine_by_sanitizer(record: Record, place: Place, shard: int, num_shards: int) -> None:
    """Let NVIDIA's tools look for races in shared memory, and for reads and writes outside."""
    for tool in ("racecheck", "memcheck")[: 1 if place.is_rehearsal else None]:
        record.run(tool, lambda tool=tool: sanitized(tool, place))  # type: ignore[misc]


def sanitized(tool: str, place: Place) -> Facts:
    """Watch a process that launches every kernel.

    Raises:
        Mismatch: the tool found something, or the process died.
    """
    if place.is_rehearsal:
        launch_each(place, most=1)
        return {}
    path = shutil.which(SANITIZER)
    if path is None:
        return {"skipped": f"{SANITIZER} is not on the PATH"}
    done = subprocess.run(
        [path, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", LAUNCHING],
        capture_output=True,
        text=True,
        timeout=SANITIZER_S,
        check=False,
    )
    output = done.stdout + done.stderr
    if done.returncode != 0:
        raise Mismatch(f"exit code {done.returncode}: {output[-3000:]}")
    return {"output": output[-500:]}


def launch_each(place: Place, most: int | None = None) -> None:
    """Launch each kernel on one small case; nothing is compared."""
    with place.examined():
        for op, case, dtype in itertools.islice(found_cases(is_rehearsal=True), most):
            inputs = op.cases.make_inputs(case, dtype, place.device)
            op.implementations()["triton"].function(**inputs)
