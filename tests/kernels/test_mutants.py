"""The faults that `make mutants` puts into kernels can still be put there."""

import pytest

from tests.helpers.kernels.mutants import KILLED, MUTANTS, SURVIVED, Mutant, run


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.name)
def test_a_mutant_can_be_made(mutant):
    compile(mutant.text(), mutant.path, "exec")


def test_there_are_enough():
    assert len(MUTANTS) >= 10
    assert len({one.name for one in MUTANTS}) == len(MUTANTS)


def test_a_line_that_is_gone_is_noticed():
    gone = Mutant("gone", "rms_norm", "rms_norm/triton.py", "no such line", "")
    with pytest.raises(ValueError, match="gone: 0 times"):
        gone.text()


@pytest.mark.slow
def test_a_rounding_before_the_weight_is_found():
    assert run(MUTANTS[0])[0] == KILLED


@pytest.mark.slow
def test_what_changes_nothing_survives():
    line = "turned = low * cos - high * sin"
    same = Mutant("the same", "sigmoid_mul", "rope_store_kv/triton.py", line, line + "  ")
    assert run(same) == (SURVIVED, "")
