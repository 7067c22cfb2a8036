"""The table and the curve of a training."""

import random

from PIL import Image

from engine.commands.training.losses import WINDOW, Losses


def test_a_resumed_table_goes_on_where_the_checkpoint_was(tmp_path):
    values = [random.random() for _ in range(3 * WINDOW)]
    losses = Losses(tmp_path)
    for step, value in enumerate(values, 1):
        losses.add(step, value, 1e-4)
    losses.write()
    resumed = Losses(tmp_path)
    resumed.resume(WINDOW)
    assert resumed.mean_of_first() == losses.mean_of_first()
    for step, value in enumerate(values[WINDOW:], WINDOW + 1):
        resumed.add(step, value, 1e-4)
    resumed.write()
    lines = (tmp_path / "loss.csv").read_text().splitlines()
    assert [float(line.split(",")[1]) for line in lines[1:]] == values
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.width > 400


def test_means_are_of_a_window(tmp_path):
    losses = Losses(tmp_path)
    for step in range(100):
        losses.add(step, float(step), 1e-4)
    assert losses.mean_of_first() == (WINDOW - 1) / 2
    assert losses.mean_of_last() == 99 - (WINDOW - 1) / 2
