"""Pairs of `logit_bias`: whole numbers stand for token ids, however they are written."""

import math
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from server.http.errors import explained
from server.protocol.logit_bias import MAX_BIASES, MAX_TOKEN_ID, LogitBias

ADAPTER: TypeAdapter[Any] = TypeAdapter(LogitBias)


def test_floats_are_ids_at_once() -> None:
    """Counting up to the largest of them takes half a minute, for each."""
    pairs = [[float(MAX_TOKEN_ID), 1.5]] * MAX_BIASES
    assert ADAPTER.validate_python(pairs) == [[MAX_TOKEN_ID, 1.5]] * MAX_BIASES


@pytest.mark.parametrize("key", [0, 0.0, 7, 7.0, MAX_TOKEN_ID])
def test_whole_numbers_are_ids(key: float) -> None:
    assert ADAPTER.validate_python([[key, False]]) == [[int(key), False]]


@pytest.mark.parametrize("key", [-1, -1.0, 0.5, MAX_TOKEN_ID + 1, 1e300, math.nan, math.inf, True])
def test_other_numbers_are_refused(key: float) -> None:
    with pytest.raises(ValidationError, match="token id"):
        ADAPTER.validate_python([[key, 1]])


def test_too_many_are_refused_before_each_of_them_is_judged() -> None:
    """Otherwise each of a hundred thousand would get its own error."""
    with pytest.raises(ValidationError) as caught:
        ADAPTER.validate_python({f"w{number}": "x" for number in range(MAX_BIASES + 1)})
    (error,) = caught.value.errors(include_url=False)
    _, message = explained(error, ("logit_bias",))
    assert message == f"logit_bias: must have at most {MAX_BIASES} items"
    assert len(ADAPTER.validate_python({str(number): 1 for number in range(MAX_BIASES)})) == 1024
