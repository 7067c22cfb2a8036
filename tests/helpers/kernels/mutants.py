"""Kernels with one fault each, which the checks against the references must find: `make mutants`.

Each mutant is a copy of `kernels` with a line changed. Its op is then checked as in `test_ops.py`,
interpreted, until something differs.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

KERNELS = Path(__file__).parents[3] / "kernels"
SURVIVED, KILLED = 0, 1
"""The exit codes of a check."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A mutant: its fault, where it is, and the operation whose checks must find it."""

    name: str
    op: str
    path: str
    """The path of the file under `kernels`."""
    old: str
    """The line to replace, which must occur exactly once."""
    new: str

    def text(self) -> str:
        """The file with the fault.

        Raises:
            ValueError: the line is not there, or not only once.
        """
        source = (KERNELS / self.path).read_text()
        if source.count(self.old) != 1:
            raise ValueError(f"{self.name}: {source.count(self.old)} times in {self.path}")
        return source.replace(self.old, self.new)


MUTANTS = (
    Mutant(
        "rounds to bf16 before the weight",
        "rms_norm",
        "rms_norm/triton.py",
        "y = x * scale * (offset + weight)",
        "y = (x * scale).to(out_ptr.dtype.element_ty).to(tl.float32) * (offset + weight)",
    ),
    Mutant(
        "drops epsilon",
        "rms_norm",
        "rms_norm/triton.py",
        "tl.sqrt(tl.sum(x * x, 0) / size + eps)",
        "tl.sqrt(tl.sum(x * x, 0) / size)",
    ),
    Mutant(
        "rounds the gate before the product",
        "silu_mul",
        "shared/triton_gated.py",
        "gate *= _sigmoid(gate)\n",
        "gate = (gate * _sigmoid(gate)).to(out_ptr.dtype.element_ty).to(tl.float32)\n",
    ),
    Mutant(
        "skips the last tile along K",
        "linear",
        "linear/triton.py",
        "tl.minimum((part + 1) * tiles_per_part, num_tiles)",
        "tl.minimum((part + 1) * tiles_per_part, num_tiles - 1)",
    ),
    Mutant(
        "sums in 16 bits",
        "linear",
        "linear/triton.py",
        'part_sum = tl.dot(x, weight, part_sum, input_precision="ieee")',
        'part_sum = tl.dot(x, weight, part_sum, input_precision="ieee").to(x.dtype).to(tl.float32)',
    ),
    Mutant(
        "has a kernel of its own for a single row, which cannot be compiled",
        "linear",
        "linear/triton.py",
        '@triton.jit(do_not_specialize=["num_rows"])\ndef _linear_add_kernel(',
        "@triton.jit\ndef _linear_add_kernel(",
    ),
    Mutant(
        "leaves out the last part of K",
        "linear_w8",
        "shared/triton_linear.py",
        "for part in tl.static_range(1, PARTS):",
        "for part in tl.static_range(1, PARTS - 1):",
    ),
    Mutant(
        "takes the scale of the group before",
        "linear_w4a16",
        "linear_w4a16/triton.py",
        "group = k // group_size + tl.arange(0, GROUPS)",
        "group = tl.maximum(k // group_size + tl.arange(0, GROUPS) - 1, 0)",
    ),
    Mutant(
        "hides a token from itself",
        "paged_attention",
        "paged_attention/triton_tile.py",
        "visible = key_at[None, :] <= sees_to[:, None]",
        "visible = key_at[None, :] < sees_to[:, None]",
    ),
    Mutant(
        "ends with the last query's own key",
        "paged_attention",
        "paged_attention/triton_prefill.py",
        "last_key = tl.load(key_ends_ptr + first_row + last_query) - 1",
        "last_key = num_cached + last_query",
    ),
    Mutant(
        "weighs sinks as if the largest score were 0",
        "paged_attention",
        "paged_attention/triton_tile.py",
        "tl.exp2((score - highest) * steepness)",
        "tl.exp2(score * steepness)",
    ),
    Mutant(
        "leaves out the last split of the keys",
        "paged_attention",
        "paged_attention/triton_decode.py",
        "num_parts = tl.cdiv(context_len, SPLIT)",
        "num_parts = context_len // SPLIT",
    ),
    Mutant(
        "turns pairs the other way",
        "rope_store_kv",
        "rope_store_kv/triton.py",
        "turned = low * cos - high * sin",
        "turned = low * cos + high * sin",
    ),
    Mutant(
        "counts cells beyond the map",
        "group_norm_silu",
        "group_norm_silu/triton.py",
        "length = tl.minimum(num_cells - run * RUN, RUN)\n",
        "length = RUN\n",
    ),
)


def main(arguments: list[str]) -> int:
    """Exit code 1 if a mutant survives. With `check OP`: check an op of the kernels that Python
    finds, which is what is done with each."""
    if arguments[:1] == ["check"]:
        return check_op(arguments[1])
    survivors = []
    for mutant in MUTANTS:
        if arguments and mutant.op not in arguments:
            continue
        start = time.monotonic()
        code, found = run(mutant)
        how = {KILLED: "killed", SURVIVED: "SURVIVED"}.get(code, "BROKEN")
        print(f"{how:8} {time.monotonic() - start:4.0f} s  {mutant.op} {mutant.name}: {found}")
        sys.stdout.flush()
        if code != KILLED:
            survivors.append(mutant)
    return int(bool(survivors))


def run(mutant: Mutant) -> tuple[int, str]:
    """Run a mutant's check. Returns its exit code and the last line of its output."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "kernels"
        shutil.copytree(KERNELS, copy, ignore=shutil.ignore_patterns("__pycache__"))
        (copy / mutant.path).write_text(mutant.text())
        done = subprocess.run(
            [sys.executable, __file__, "check", mutant.op],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": folder, "TRITON_INTERPRET": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    lines = (done.stdout + done.stderr).strip().splitlines() or [""]
    return done.returncode, lines[-1][:200]


def check_op(name: str) -> int:
    """Check all cases of an op in bf16, then in fp32, until one fails."""
    import torch

    import kernels
    from kernels import _triton
    from kernels.tools.check import Mismatch, check

    torch.set_num_threads(1)
    _triton.runs_on = lambda *tensors: True
    (op,) = (one for one in kernels.OPS if one.name == name)
    for dtype in (torch.bfloat16, torch.float32):
        for case in op.cases.CASES:
            try:
                check(op, "triton", case, dtype, torch.device("cpu"))
            except Mismatch as mismatch:
                print(mismatch)
                return KILLED
            except Exception as error:
                if not type(error).__module__.startswith("triton."):
                    raise
                print(f"{op.name} {case.name}: {error}")
                return KILLED
    return SURVIVED


if __name__ == "__main__":
    # 1 is what an exception exits with, too.
    try:
        sys.exit(main(sys.argv[1:]))
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
        sys.exit(2)
