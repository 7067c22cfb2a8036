"""Pictures with captions from folders."""

import json
import random

import numpy as np
import pytest
from PIL import Image

from engine.commands.training.image_data import find_pictures, read_picture
from engine.errors import InvalidParameter


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.jpg"):
        size = random.randrange(20, 60), random.randrange(20, 60)
        Image.new("RGB", size, (random.randrange(256), 0, 255)).save(tmp_path / name)
    return tmp_path


def test_captions_beside_pictures(folder):
    (folder / "a.txt").write_text(" a cat\n")
    (folder / "b.txt").write_text("a dog")
    found = find_pictures(folder)
    wanted = [("a.jpg", "a cat"), ("b.png", "a dog")]
    assert [(one.path.name, one.caption) for one in found] == wanted


def test_captions_in_a_list(folder):
    line = {"file_name": "b.png", "text": "a dog"}
    (folder / "metadata.jsonl").write_text(json.dumps(line) + "\n\n")
    assert [(one.path.name, one.caption) for one in find_pictures(folder)] == [("b.png", "a dog")]


@pytest.mark.parametrize("line", ["x", "[]", "{}", '{"file_name": "c.png", "text": "a"}'])
def test_lines_that_name_no_picture(folder, line):
    (folder / "metadata.jsonl").write_text(line)
    with pytest.raises(InvalidParameter, match="line 1 of metadata"):
        find_pictures(folder)


def test_folders_that_lack_something(folder, tmp_path):
    with pytest.raises(InvalidParameter, match=r"a\.jpg has no caption"):
        find_pictures(folder)
    with pytest.raises(InvalidParameter, match="not a folder"):
        find_pictures(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidParameter, match="has no pictures"):
        find_pictures(tmp_path / "empty")


def test_the_middle_square_is_kept(tmp_path):
    pixels = np.zeros((40, 100, 3), np.uint8)
    pixels[:, 30:70] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    found = read_picture(tmp_path / "wide.png", 40)
    assert found.shape == (3, 40, 40)
    assert found.min() == found.max() == 1.0


def test_a_file_that_is_no_picture(tmp_path):
    (tmp_path / "no.png").write_bytes(b"nothing")
    with pytest.raises(InvalidParameter, match=r"no\.png cannot be read as a picture"):
        read_picture(tmp_path / "no.png", 8)
