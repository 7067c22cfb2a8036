"""PyTorch and oneDNN keep to a rung if their variables ask for it."""

import subprocess
import sys
from pathlib import Path

import pytest

from kernels import isa

LIMITED = Path(__file__).parents[2] / "loadtest" / "peers" / "limited.sh"
PROBE = """
import torch
print(torch.backends.cpu.get_cpu_capability(), torch.ops.mkldnn._is_mkldnn_bf16_supported())
"""


def limited(rung: str) -> subprocess.CompletedProcess[str]:
    command = [LIMITED, rung, sys.executable, "-c", PROBE]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.skipif(bool(isa.missing("x86-64-v3")), reason="a processor with AVX2")
def test_what_the_libraries_use() -> None:
    assert limited("x86-64-v3").stdout == "AVX2 False\n"


def test_native_is_no_limit() -> None:
    free = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    assert limited("native").stdout == free.stdout != ""


def test_a_rung_that_is_not_known() -> None:
    done = limited("x86-64-v9")
    assert done.returncode == 2
    assert "native|x86-64-v3" in done.stderr
