"""Results have the same bits whatever the number of threads, in all C++ operations.

They use threads for any amount of work here, so that small cases are divided, too.
"""

import copy
import ctypes

import pytest
import torch

import kernels
from kernels import native

OPS = [op for op in kernels.OPS if "cpu" in op.implementations()]


@pytest.fixture
def eager_threads():
    """Operations that use threads however little there is to do."""
    library = native.library()
    if library is None:
        pytest.skip("no C++ compiler")
    serial_below = ctypes.c_int64.in_dll(library, "tandem_serial_below")
    before = serial_below.value
    serial_below.value = 1
    yield
    serial_below.value = before


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
