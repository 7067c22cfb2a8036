"""Files that strangers wrote: what is no file is refused at once, as is JSON too deep to walk."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import CorruptFile, ModelLoadError
from engine.files.checkpoint_files import (
    MAX_JSON_BYTES,
    MAX_JSON_DEPTH,
    check_folder,
    check_regular,
    open_regular,
    read_bounded,
    read_json,
    read_optional_json,
)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


MAKERS: dict[str, Callable[[Path], None]] = {
    "a pipe": lambda path: os.mkfifo(path),
    "a folder": lambda path: path.mkdir(),
    "a socket": make_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_no_file_is_named_and_never_waited_for(kind, tmp_path):
    path = tmp_path / "config.json"
    MAKERS[kind](path)
    for read in (check_regular, open_regular, read_json, read_optional_json):
        with pytest.raises(CorruptFile, match=f"config.json is {kind}") as caught:
            read(path)
        assert str(tmp_path) not in str(caught.value)
    with pytest.raises(CorruptFile, match=f"config.json is {kind}"):
        check_folder(tmp_path)


def test_a_pipe_that_takes_a_files_place_just_then(tmp_path, monkeypatch):
    """It comes between the first look and the opening; the second look sees it."""
    path = tmp_path / "model.safetensors"
    os.mkfifo(path)
    monkeypatch.setattr("engine.files.checkpoint_files.check_regular", lambda path: None)
    with pytest.raises(CorruptFile, match="a pipe"):
        open_regular(path)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_depth(opening, closing, tmp_path):
    """Far beyond Python's limit, just beyond ours, and just within it."""
    path = tmp_path / "config.json"
    for depth in (100_000, 900, MAX_JSON_DEPTH):
        path.write_text('{"x":' + opening * depth + "1" + closing * depth + "}")
        for read in (read_json, read_optional_json):
            with pytest.raises(CorruptFile, match=r"config\.json is nested more than 64 levels"):
                read(path)
        with pytest.raises(CorruptFile, match="nested"):
            check_folder(tmp_path)
    path.write_text('{"x":' + opening * (MAX_JSON_DEPTH - 1) + "1" + closing * 63 + "}")
    assert "x" in read_json(path)
    check_folder(tmp_path)


@pytest.mark.parametrize("text", ["", "nonsense", '{"a": 1', "[1]", "1", "null", '"a"', "\xff\xfe"])
def test_what_is_no_object(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(CorruptFile, match=r"config\.json is not (valid JSON|a JSON object)"):
        read_json(path)


def test_what_is_not_there(tmp_path):
    assert read_optional_json(tmp_path / "a.json") == {}
    with pytest.raises(ModelLoadError, match=r"a\.json cannot be read: No such file"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").symlink_to(tmp_path / "nowhere.json")
    assert read_optional_json(tmp_path / "a.json") == {}
    check_folder(tmp_path)


def test_size(tmp_path):
    path = tmp_path / "vocab.json"
    with path.open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(CorruptFile, match=r"vocab\.json is larger than 64 MiB"):
        read_json(path)
    with pytest.raises(CorruptFile, match="larger"):
        check_regular(path, 1 << 20)
    check_regular(path)
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(CorruptFile, match="larger"):
        read_bounded(path, 4)


def test_a_folder_of_ordinary_files_passes(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps(["a", "b"]))
    (tmp_path / "weights.bin").write_bytes(b"\xff")
    (tmp_path / "inner").mkdir()
    check_folder(tmp_path)
    with pytest.raises(ModelLoadError, match="nowhere cannot be read"):
        check_folder(tmp_path / "nowhere")
