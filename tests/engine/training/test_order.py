"""Orders that make no sense."""

from pathlib import Path

import pytest

from engine.errors import InvalidParameter
from engine.training.order import TrainingOrder
from engine.training.run import run


def order(**fields):
    paths = {"data": Path("data"), "output": Path("out")}
    return TrainingOrder(task="text", model="m", **(paths | fields))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rank", 0),
        ("rank", 257),
        ("steps", 0),
        ("batch_size", 0),
        ("learning_rate", float("nan")),
        ("learning_rate", -1.0),
        ("alpha", 0.0),
        ("size", 63),
        ("size", 8192),
        ("caption_dropout", 1.5),
        ("max_length", 1),
    ],
)
def test_numbers_that_make_no_sense(name, value):
    with pytest.raises(InvalidParameter) as error:
        order(**{name: value}).check()
    assert name in error.value.message
    assert error.value.param == name


def test_samples_of_nothing():
    with pytest.raises(InvalidParameter, match="--sample-prompt"):
        order(sample_every=5).check()


def test_an_output_that_holds_something(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidParameter, match="--resume"):
        run(order(output=tmp_path), 1 << 40, lambda message: None)
