"""Which orders are taken, and which of them are the usual one."""

import pytest

from engine.contract.sampler_order import SAMPLERS, acting_order, check_order, without_unlisted
from engine.contract.sampling_params import SAMPLER_PARAMETERS
from engine.errors import InvalidParameter
from kernels.sample_tokens import reference
from kernels.sample_tokens.columns import STEPS

NEUTRAL = {name: one.neutral for name, one in SAMPLER_PARAMETERS.items()}


def test_the_usual_order_is_that_of_the_kernels():
    assert [*SAMPLERS] == ["penalties", "dry", *STEPS]
    assert [step.__name__ for step in reference.STEPS if step.__name__ in STEPS] == [*STEPS[2:]]


def test_what_acts_in_rows_belongs_to_a_sampler():
    """Otherwise it would act where it is not listed, and beside Mirostat."""
    named = {name for names in SAMPLERS.values() for name in names}
    in_rows = {name for name, one in SAMPLER_PARAMETERS.items() if not one.on_host}
    assert {SAMPLER_PARAMETERS[name].acts_with for name in in_rows - named} <= named


@pytest.mark.parametrize(
    ("changes", "samplers", "expected"),
    [
        ({}, ["top_p", "top_k"], None),
        ({"top_p": 0.9}, ["top_p", "top_k", "temperature"], None),
        ({"top_p": 0.9, "top_k": 5}, ["penalties", "top_k", "top_p", "temperature"], None),
        ({"top_p": 0.9, "top_k": 5}, ["dry", "top_p", "top_k"], ("top_p", "top_k")),
        ({"top_p": 0.9, "temperature": 0.5}, ["top_p", "temperature"], ("top_p", "temperature")),
        ({"top_p": 0.9, "dynatemp_range": 0.5}, ["top_p", "temperature"], ("top_p", "temperature")),
        ({"top_p": 0.9, "temperature": 0.0}, ["top_p", "temperature"], None),
        ({"top_p": 0.9, "temperature": 0.5, "mirostat": 2}, ["top_p", "temperature"], None),
        ({"xtc_probability": 0.5, "min_p": 0.1}, ["xtc", "min_p"], ("xtc", "min_p")),
    ],
)
def test_what_acts_in_which_order(changes, samplers, expected):
    values = without_unlisted(NEUTRAL | changes, samplers)
    assert acting_order(values, samplers) == expected


def test_what_is_not_listed_is_neutral():
    values = NEUTRAL | {"temperature": 0.0, "top_k": 5, "repetition_penalty": 2.0, "min_p": 0.2}
    expected = NEUTRAL | {"min_p": 0.2}
    assert without_unlisted(values, ["min_p"]) == expected
    assert without_unlisted(values, list(SAMPLERS)) == values
    assert without_unlisted(values, []) == NEUTRAL


@pytest.mark.parametrize(
    "samplers",
    [["nothing"], ["top_k"] * 2, ["top_k", "penalties"], ["dry", "penalties"], ["top_k", "dry"]],
)
def test_other_orders_are_refused(samplers):
    with pytest.raises(InvalidParameter) as caught:
        check_order(samplers)
    assert caught.value.param == "samplers"
    first, second, *others = SAMPLERS
    check_order([first, second, *reversed(others)])
