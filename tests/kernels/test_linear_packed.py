"""Packed weights: arranged without loss, multiplied with the same bits whatever shares the call."""

import random

import pytest
import torch

from kernels import PackedWeight, isa, linear_packed
from kernels.linear_packed import cpu
from tests.helpers.kernels.rungs import X86_RUNGS

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def problem(dtype, rows, inputs, outputs):
    weight = torch.randn(outputs, inputs).mul_(inputs**-0.5).to(dtype)
    return torch.randn(rows, inputs).to(dtype), PackedWeight.pack(weight)


def differences_alone(multiply, x):
    """How many rows of a product change when their neighbours leave."""
    together = multiply(x)
    return sum(not torch.equal(multiply(x[i : i + 1])[0], together[i]) for i in range(len(x)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (16, 32), (45, 37), (960, 576), (100, 9000)])
def test_unpacking_returns_what_was_packed(dtype, shape):
    weight = torch.randn(shape).to(dtype)
    packed = PackedWeight.pack(weight)
    assert torch.equal(packed.unpack(), weight)
    rows = torch.tensor([len(weight) - 1, 0, *random.choices(range(len(weight)), k=20)])
    for _ in range(2):
        found = packed.row_lookup()(rows)
        assert found.is_contiguous() and torch.equal(found, weight[rows])
        found.zero_()  # is nobody else's memory


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inputs", [576, 1536, 37, 9000])
def test_a_row_has_the_same_bits_alone_and_among_others(dtype, inputs):
    rows = random.randint(2, 70)
    x, weight = problem(dtype, rows, inputs, random.choice([48, 208, 576]))
    assert differences_alone(lambda x: linear_packed(x, weight), x) == 0
    first = linear_packed(x, weight, fp32_out=True)
    for _ in range(5):
        some = torch.randperm(rows)[: random.randint(1, rows)]
        assert torch.equal(linear_packed(x[some], weight, fp32_out=True), first[some])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_changes_nothing(dtype):
    x, weight = problem(dtype, 100, 576, 960)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = linear_packed(x, weight)
        for number in (2, 3, 5):
            torch.set_num_threads(number)
            assert torch.equal(linear_packed(x, weight), one)
    finally:
        torch.set_num_threads(threads)


def test_a_library_that_orders_sums_by_the_number_of_rows_is_found_out():
    """The check above can fail: PyTorch's fp32 product changes with the number of rows."""
    weight = torch.randn(3072, 576)
    x = torch.randn(64, 576)
    assert differences_alone(lambda x: torch.nn.functional.linear(x, weight), x) > 0


@pytest.mark.slow
@pytest.mark.parametrize("rung", X86_RUNGS)
def test_other_processors_get_the_same_result(rung, run_build_of):
    run_build_of(cpu, rung)
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)):
        for rows in (3, 19):
            x, weight = problem(dtype, rows, 1100, 208)
            expected = x.float() @ weight.unpack().float().T
            found = linear_packed(x, weight)
            assert (found.float() - expected).abs().max() < tolerance
            assert differences_alone(lambda x: linear_packed(x, weight), x) == 0  # noqa: B023


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 32, 33, 100])
def test_the_matrix_unit_is_told_the_right_tiles(run_build_of, rows):
    run_build_of(cpu, isa.chosen(), "-DTANDEM_EMULATE_MATRIX_TILES")
    for inputs, outputs in ((576, 208), (37, 45), (64, 16)):
        x, weight = problem(torch.bfloat16, rows, inputs, outputs)
        expected = x.float() @ weight.unpack().float().T
        found = linear_packed(x, weight, fp32_out=True)
        assert (found - expected).abs().max() < 1e-4
        assert differences_alone(lambda x: linear_packed(x, weight), x) == 0  # noqa: B023
