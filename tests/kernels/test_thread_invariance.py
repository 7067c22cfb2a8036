"""Results have the same bits whatever the number of threads, in all C++ operations.

They are compiled to use threads for any amount of work, so that small cases are divided, too.
"""

import copy
import shutil

import pytest
import torch

import kernels
from kernels import cache_folder, isa, native

SERIAL_BELOW = "num_elements >= 1 << 16"
OPS = [op for op in kernels.OPS if "cpu" in op.implementations()]


@pytest.fixture
def eager_threads(run_build, other_builds, tmp_path_factory, monkeypatch):
    """Operations that use threads however little there is to do."""
    folder = tmp_path_factory.getbasetemp() / "eager_threads"
    if not folder.exists():
        shutil.copytree(native.KERNELS, folder / "kernels")
        header = folder / "kernels" / native.SHARED / "native.h"
        text = header.read_text()
        assert SERIAL_BELOW in text
        header.write_text(text.replace(SERIAL_BELOW, "num_elements >= 1"))
    monkeypatch.setattr(native, "KERNELS", folder / "kernels")
    monkeypatch.setattr(cache_folder, "_folder", other_builds)
    # Built quickly: who takes which piece does not depend on the optimisation.
    monkeypatch.setattr(native, "FLAGS", ("-O1", *native.FLAGS[1:]))
    run_build(isa.chosen())


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(op, function, inputs, threads):
    """Everything the op writes, which the inputs do not keep."""
    torch.set_num_threads(threads)
    inputs = copy.deepcopy(inputs)
    return [output.clone() for output in op.outputs(function(**inputs), inputs)]


def check_threads(op, function, inputs):
    alone = run(op, function, inputs, 1)
    for number in (2, 3, 7):
        found = run(op, function, inputs, number)
        torch.testing.assert_close(found, alone, rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_the_number_of_threads_changes_no_bit(op, dtype, eager_threads):
    implementation = op.implementations()["cpu"]
    made = [op.cases.make_inputs(case, dtype, torch.device("cpu")) for case in op.cases.CASES]
    supported = [inputs for inputs in made if implementation.supports(**inputs)]
    assert supported
    for inputs in supported:
        check_threads(op, implementation.function, inputs)


def test_an_operation_whose_sums_depend_on_the_threads_is_found():
    op = kernels.rms_norm

    def careless(x, weight, eps, *, offset):
        return op.reference(x, weight, eps + 1e-3 * torch.get_num_threads(), offset=offset)

    inputs = op.cases.make_inputs(op.cases.CASES[1], torch.float32, torch.device("cpu"))
    with pytest.raises(AssertionError):
        check_threads(op, careless, inputs)
