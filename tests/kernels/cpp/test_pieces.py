"""Work handed out in pieces: each done once, by whoever comes, whoever does not."""

import random
import subprocess
from pathlib import Path

import pytest

from kernels import building, compilers

SOURCE = Path(__file__).with_name("pieces_check.cpp")


@pytest.fixture(scope="module", params=[(), ("-DTANDEM_WITHOUT_FUTEX",)], ids=["futex", "others"])
def program(tmp_path_factory, request):
    compiler = compilers.find()
    if compiler is None:
        pytest.skip("no C++ compiler")
    path = tmp_path_factory.mktemp("pieces") / "check"
    flags = ["-O1", "-std=c++17", "-fopenmp", f"-I{building.KERNELS / building.SHARED}"]
    flags += request.param
    subprocess.run([compiler, *flags, str(SOURCE), "-o", str(path)], check=True, timeout=600)
    return path


def test_each_piece_is_done_once_and_nobody_who_is_late_is_waited_for(program):
    seed = random.randrange(1 << 31)
    done = subprocess.run([program, str(seed)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"seed {seed}: {done.stdout[:2000]}{done.stderr[:2000]}"
