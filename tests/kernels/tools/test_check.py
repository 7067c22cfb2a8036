"""The check that all kernels go through must fail for each kind of fault."""

import types
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from kernels.registry import op
from kernels.tools.check import Mismatch, check, half_unit

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    name: str
    rows: int


def make_inputs(case, dtype, device):
    """`y` is the left half of wider rows."""
    rows = torch.randn(case.rows, 8).to(dtype)
    return {"x": torch.randn(case.rows, 4).to(dtype), "y": rows[:, :4], "index": torch.arange(4)}


def checked(function, *, supports=lambda x, y, index: True, rows=3, refused=()):
    """Check `function` as an implementation of: return 2·x, and add x to y in place."""

    def outputs(result, inputs):
        return (result, inputs["y"])

    cases = types.ModuleType("cases")
    cases.CASES = (Case("a_case", rows),)
    cases.TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
    cases.make_inputs, cases.outputs = make_inputs, outputs
    cases.REFUSED = {"cpu": refused}

    @op(cases)
    def double(x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """Twice x."""
        y += x
        return 2 * x

    double.implementation("cpu", supports=supports)(function)
    check(double, "cpu", cases.CASES[0], torch.bfloat16, CPU)


def right(x, y, index):
    y += x
    out = torch.empty_like(x)
    return torch.mul(x, 2, out=out)


def test_an_id_is_right_or_wrong():
    """Within the tolerance of floats there would be hundreds of others."""
    cases = types.ModuleType("cases")
    cases.CASES, cases.TOLERANCE = (Case("a_case", 1),), {torch.float32: 1e-2}
    cases.make_inputs = lambda case, dtype, device: {"x": torch.ones(case.rows)}

    @op(cases)
    def best(x: Tensor) -> Tensor:
        """An id."""
        return torch.full((len(x),), 150_000)

    def always(x):
        return True

    best.implementation("cpu", supports=always)(lambda x: torch.full((len(x),), 150_000))
    best.implementation("composed", supports=always)(lambda x: torch.full((len(x),), 150_001))
    check(best, "cpu", cases.CASES[0], torch.float32, CPU)
    with pytest.raises(Mismatch, match="150001"):
        check(best, "composed", cases.CASES[0], torch.float32, CPU)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_right_implementation_passes(rows):
    checked(right, rows=rows)


def test_a_wrong_number_is_found():
    def function(x, y, index):
        out = right(x, y, index)
        out[1, 2] += 1
        return out

    with pytest.raises(Mismatch, match=r"double cpu a_case torch\.bfloat16: output 0 element 6"):
        checked(function)


def test_a_wrong_number_written_in_place_is_found():
    with pytest.raises(Mismatch, match="output 1 element"):
        checked(lambda x, y, index: 2 * x)


@pytest.mark.parametrize("allocate", ["empty_like", "empty", "new_empty"])
def test_what_is_not_written_is_found(allocate):
    def function(x, y, index):
        y += x
        if allocate == "empty_like":
            out = torch.empty_like(x)
        elif allocate == "empty":
            out = torch.empty(x.shape, dtype=x.dtype)
        else:
            out = x.new_empty(x.shape)
        out[:2] = 2 * x[:2]
        return out

    with pytest.raises(Mismatch, match="element 8 is nan"):
        checked(function)


@pytest.mark.parametrize("where", [-1, 12])
def test_a_write_beside_an_output_is_found(where):
    def function(x, y, index):
        out = right(x, y, index)
        out.as_strided((1,), (1,), out.storage_offset() + where).fill_(1.0)
        return out

    with pytest.raises(Mismatch, match="wrote beyond the 24 bytes of an output"):
        checked(function)


@pytest.mark.parametrize(("name", "offset"), [("x", -1), ("x", 0), ("x", 12), ("y", 4), ("y", 24)])
def test_a_write_where_no_output_is_is_found(name, offset):
    def function(x, y, index):
        out = right(x, y, index)
        tensor = {"x": x, "y": y}[name]
        tensor.as_strided((1,), (1,), tensor.storage_offset() + offset).fill_(100.0)
        return out

    with pytest.raises(Mismatch, match="of an input was changed"):
        checked(function)


def test_a_changed_index_is_found():
    def function(x, y, index):
        index[0] += 1
        return right(x, y, index)

    with pytest.raises(Mismatch, match="byte 0 of an input was changed"):
        checked(function)


def test_a_refusal_is_found():
    with pytest.raises(Mismatch, match=": refused"):
        checked(right, supports=lambda x, y, index: False)


def test_a_case_that_should_be_refused_must_be():
    checked(right, supports=lambda x, y, index: False, refused=("a_case",))
    with pytest.raises(Mismatch, match=": not refused"):
        checked(right, refused=("a_case",))


def test_a_wrong_shape_is_found():
    def function(x, y, index):
        return right(x, y, index)[:-1]

    with pytest.raises(Mismatch, match=r"has shape \(2, 4\) instead of \(3, 4\)"):
        checked(function)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 300.0])
def test_one_rounding_stays_within_half_a_unit_and_two_do_not(dtype, scale):
    exact = torch.randn(5000) * scale
    once = exact.to(dtype)
    assert ((once.double() - exact.double()).abs() <= half_unit(once, exact)).all()
    twice = (exact.to(dtype).float() * 1.1).to(dtype)
    wanted = exact * 1.1
    assert ((twice.double() - wanted.double()).abs() > half_unit(twice, wanted)).any()


def test_outputs_in_fp32_are_not_excused_by_inputs_in_bf16():
    cases = types.ModuleType("cases")
    cases.CASES = (Case("a_case", 1),)
    cases.TOLERANCE = {torch.bfloat16: 1e-5}
    cases.SLACK = {"composed": {torch.bfloat16: 1e-2}}
    cases.make_inputs = lambda case, dtype, device: {"x": torch.ones(64).to(dtype)}

    @op(cases)
    def third(x: Tensor) -> Tensor:
        """A third, in fp32."""
        return x.float() / 3

    def rounded(x):
        return (x / 3).float()

    third.implementation("cpu", supports=lambda x: True)(rounded)
    third.implementation("composed", supports=lambda x: True)(rounded)
    check(third, "composed", cases.CASES[0], torch.bfloat16, CPU)
    with pytest.raises(Mismatch, match=r"instead of 0\.333"):
        check(third, "cpu", cases.CASES[0], torch.bfloat16, CPU)
