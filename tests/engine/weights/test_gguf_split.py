"""Models in several GGUF files: read as one, and refused where the parts are not those of one."""

import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import CorruptFile, ModelLoadError
from engine.files.gguf_part_names import part_names
from engine.weights.gguf_tensors import read_tensors
from engine.weights.loader import iter_weights, load_model_config, weight_headers
from engine.weights.source import Checkpoint
from tests.helpers.models.damage import num_refused


def load(path: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    checkpoint = Checkpoint("gguf", path, "m")
    config = load_model_config(checkpoint)
    weight_headers(checkpoint, config)
    return config, dict(iter_weights(checkpoint, config))


def parts_of(path: Path) -> list[Path]:
    return [path.with_name(name) for name in part_names(path.name)]


@pytest.fixture
def parts(make_gguf, tiny_llama):
    """A small Llama in four files."""
    return parts_of(make_gguf(tiny_llama(), "llama", max_tensors=8))


@pytest.mark.parametrize("no_tensor_first", [False, True])
@pytest.mark.parametrize("max_tensors", [1, 8, 29])
def test_parts_are_read_as_the_whole(max_tensors, no_tensor_first, make_gguf, tiny_llama):
    folder = tiny_llama(seed=random.randrange(1 << 16))
    whole = make_gguf(folder, "llama")
    options = {"max_tensors": max_tensors, "no_tensor_first": no_tensor_first}
    first = make_gguf(folder, "llama", **options)
    num_parts = -(-len(read_tensors(whole)) // max_tensors) + no_tensor_first
    assert len(parts_of(first)) == num_parts > 1
    config, weights = load(first)
    wanted_config, wanted = load(whole)
    assert config == wanted_config
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)


def test_a_part_alone_says_what_is_needed(parts):
    with pytest.raises(ModelLoadError, match=r"part 2 of 4 .*give the first part, NAME-00001-of-0"):
        read_tensors(parts[1])
    parts[1].unlink()
    with pytest.raises(ModelLoadError, match=r"00002-of-00004\.gguf cannot be read"):
        read_tensors(parts[0])


def test_parts_under_other_names(parts, tmp_path):
    for name in ("model.gguf", "model-00001-of-00003.gguf", "model-00005-of-00004.gguf"):
        parts[0].rename(tmp_path / name)
        with pytest.raises(ModelLoadError, match=r"part 1 of 4 .*--merge"):
            read_tensors(tmp_path / name)
        (tmp_path / name).rename(parts[0])


def test_parts_in_another_order(parts, tmp_path):
    parts[1].rename(tmp_path / "x")
    parts[2].rename(parts[1])
    (tmp_path / "x").rename(parts[2])
    with pytest.raises(CorruptFile, match=r"00002-of-00004.gguf says that it is part 3 of 4"):
        read_tensors(parts[0])


def test_a_part_that_leads_back_to_the_first(parts):
    parts[3].unlink()
    parts[3].symlink_to(parts[0])
    with pytest.raises(CorruptFile, match=r"00004-of-00004.gguf says that it is part 1 of 4"):
        read_tensors(parts[0])
    parts[2].unlink()
    parts[2].symlink_to(parts[2])
    with pytest.raises(ModelLoadError, match=r"00003-of-00004.gguf cannot be read"):
        read_tensors(parts[0])


def test_a_part_of_another_split(parts, make_gguf, tiny_llama):
    other = parts_of(make_gguf(tiny_llama(num_hidden_layers=1), "llama", max_tensors=3))
    assert len(other) == len(parts)
    other[1].rename(parts[1])
    with pytest.raises(CorruptFile, match=r"part 2 of 4 with 12 tensors .* with 30 tensors"):
        read_tensors(parts[0])


def write_part(
    path: Path, number: int, count: int, num_tensors: int | None, tensors: tuple[bytes, ...]
) -> Path:
    keys = [struct.pack("<Q8sIH", 8, b"split.no", 2, number)]
    keys.append(struct.pack("<Q11sIH", 11, b"split.count", 2, count))
    if num_tensors is not None:
        keys.append(struct.pack("<Q19sIi", 19, b"split.tensors.count", 5, num_tensors))
    entries = [struct.pack(f"<Q{len(n)}sIQIQ", len(n), n, 1, 32, 0, 0) for n in tensors]
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(entries), len(keys))
    head += b"".join([*keys, *entries])
    path.write_bytes(head + bytes(-len(head) % 32) + bytes(128))
    return path


@pytest.mark.parametrize(
    ("stated", "tensors", "words"),
    [
        (3, ((b"a",), (b"b",)), "with 3 tensors in all parts; there are 2"),
        (1, ((b"a",), (b"b",)), "with 1 tensors in all parts; there are 2"),
        (-2, ((b"a",), (b"b",)), "with -2 tensors in all parts; there are 2"),
        (None, ((b"a",), (b"b",)), "with None tensors in all parts; there are 2"),
        (2, ((b"a",), (b"a",)), "repeats tensor 'a' of another part"),
    ],
)
def test_tensors_that_contradict_each_other(stated, tensors, words, tmp_path):
    paths = [
        write_part(tmp_path / f"m-0000{i + 1}-of-00002.gguf", i, 2, stated, names)
        for i, names in enumerate(tensors)
    ]
    with pytest.raises(CorruptFile, match=words):
        read_tensors(paths[0])


def test_a_split_of_thousands_that_are_not_there(tmp_path):
    path = write_part(tmp_path / "m-00001-of-65535.gguf", 0, 65535, 1 << 30, (b"a",))
    with pytest.raises(ModelLoadError, match=r"m-00002-of-65535\.gguf cannot be read"):
        read_tensors(path)


@pytest.mark.parametrize(("value_type", "value"), [(6, struct.pack("<f", 2)), (7, b"\1")])
def test_numbers_of_parts_must_be_integers(value_type, value, tmp_path):
    key = struct.pack("<Q11sI", 11, b"split.count", value_type) + value
    (tmp_path / "m.gguf").write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + key)
    with pytest.raises(CorruptFile, match="header is damaged"):
        read_tensors(tmp_path / "m.gguf")


@pytest.mark.parametrize("count", [0, 1])
def test_a_split_into_one_is_whole(count, tmp_path):
    path = write_part(tmp_path / "m.gguf", 0, count, 1, (b"a",))
    assert list(read_tensors(path)) == ["a"]


def test_damaged_parts(parts):
    ends = {path: path.stat().st_size for path in parts}
    for tensor in read_tensors(parts[0]).values():
        ends[tensor.path] = min(ends[tensor.path], tensor.offset)
    styles = ["cut", "bit", "byte", "word"]
    assert num_refused(ends, lambda: load(parts[0]), 150, styles) > 30
