"""Orders that make no sense."""

from pathlib import Path

import pytest

from engine.commands.training.run import run
from engine.contract.orders import TrainingOrder
from engine.errors import InvalidParameter


def order(**fields):
    paths = {"data": Path("data"), "output": Path("out")}
    return TrainingOrder(task="text", model="m", **(paths | fields))


@pytest.mark.parametrize(("name", "value"), [("learning_rate", float("nan")), ("size", 63)])
def test_numbers_that_make_no_sense(name, value):
    with pytest.raises(InvalidParameter) as error:
        order(**{name: value})
    assert name in error.value.message
    assert error.value.param == name


def test_samples_of_nothing():
    with pytest.raises(InvalidParameter, match="--sample-prompt"):
        order(sample_every=5)


def test_an_output_that_holds_something(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidParameter, match="--resume"):
        run(order(output=tmp_path), 1 << 40, lambda message: None)
