import types

import pytest

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
    assert double.explain(5) == "double: cpu"
    assert double.explain(50) == "double: composed (cpu refused)"
    assert double.explain(500) == "double: reference (cpu, composed refused)"


@pytest.mark.parametrize("names", [["fastest"], ["cpu", "cpu"]])
def test_unknown_and_doubled_names_are_refused(names):
    double = make_op()
    with pytest.raises(ValueError, match="unknown or already there"):
        for name in names:
            double.implementation(name, supports=lambda x: True)(lambda x: x)
    assert double(1) in (1, 2)


def test_an_op_keeps_its_name_and_contract():
    double = make_op()
    assert (double.name, double.__doc__) == ("double", "Twice x.")
