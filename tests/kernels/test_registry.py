import types

import pytest
import torch

from kernels import _triton, compilers, native
from kernels.registry import op

CASES = types.ModuleType("cases")


def make_op():
    @op(CASES)
    def double(x: int) -> int:
        """Twice x."""
        return 2 * x

    return double


def test_the_reference_runs_when_nothing_is_registered():
    assert make_op()(3) == 6


def test_first_supporting_implementation_in_order_runs():
    double = make_op()
    double.implementation("composed", supports=lambda x: x < 100)(lambda x: ("composed", x))
    double.implementation("cpu", supports=lambda x: x < 10)(lambda x: ("cpu", x))
    assert list(double.implementations()) == ["cpu", "composed"]
    assert double(5) == ("cpu", 5)
    assert double(50) == ("composed", 50)
    assert double(500) == 1000
    assert double.choice(5) == ("cpu", {})
    unfit = "does not support these arguments"
    assert double.choice(50) == ("composed", {"cpu": unfit})
    assert double.choice(500) == ("reference", {"cpu": unfit, "composed": unfit})


def test_a_refusal_names_what_the_machine_lacks(monkeypatch):
    double = make_op()
    for name in ("cpu", "triton"):
        double.implementation(name, supports=lambda x: False)(lambda x: x)
    x = torch.ones(1)
    if not torch.cuda.is_available():
        assert double.choice(x)[1]["triton"] == "no NVIDIA GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert double.choice(x)[1]["triton"] == "the tensors are on cpu"
    assert double.choice(x.to("meta"))[1]["cpu"] == "the tensors are on meta"
    monkeypatch.setattr(_triton, "AVAILABLE", False)
    assert double.choice(x)[1]["triton"] == "Triton is not installed"
    monkeypatch.setattr(native, "library", lambda: None)
    assert double.choice(x)[1]["cpu"] == "the C++ operations cannot be built"
    monkeypatch.setattr(compilers, "NAMES", ("no-such-compiler",))
    assert double.choice(x)[1]["cpu"] == "no C++ compiler"
    assert double.choice(x)[0] == "reference"


@pytest.mark.parametrize("names", [["fastest"], ["cpu", "cpu"]])
def test_unknown_and_doubled_names_are_refused(names):
    double = make_op()
    with pytest.raises(ValueError, match="unknown or already registered"):
        for name in names:
            double.implementation(name, supports=lambda x: True)(lambda x: x)
    assert double(1) in (1, 2)


def test_an_op_keeps_its_name_and_contract():
    double = make_op()
    assert (double.name, double.__doc__) == ("double", "Twice x.")
