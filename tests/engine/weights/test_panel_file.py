"""Arranged weights in a file: the same bits, mapped again, and refused where they do not belong."""

import os
import random
import threading
from pathlib import Path

import pytest
import torch

from engine.quantization.kept_panels import kept_by, kept_panels
from engine.runtime.parked_memory import ParkedMemory
from engine.weights import panel_file
from engine.weights.panel_file import PanelFile
from engine.weights.source import Checkpoint
from kernels import GGUFType, native, panels_from_gguf
from kernels.linear_gguf.cases import random_weight
from kernels.linear_panels.gguf import FORMATS

pytestmark = pytest.mark.skipif(native.library() is None, reason="needs the C++ operations")


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    """Small files are kept, too, and on a disk that is nearly full."""
    monkeypatch.setattr(panel_file, "SMALLEST_BYTES", 1)
    monkeypatch.setattr(panel_file, "FREE_SHARE", 0.0)


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(random.randbytes(99))
    return Checkpoint(layout="gguf", path=path, name="model")


@pytest.fixture
def weights():
    """Some weights as (type, outputs, inputs, rows of a file)."""
    rng = random.Random()
    kinds = [GGUFType.Q4_0, GGUFType.Q4_K, GGUFType.Q6_K, GGUFType.Q8_0]
    return [
        (kind, outputs, inputs, random_weight(kind, outputs, inputs))
        for kind in rng.choices(kinds, k=rng.randrange(2, 6))
        for outputs, inputs in [(rng.randrange(1, 200), 256 * rng.randrange(1, 5))]
    ]


def panels_of(weights, keeper):
    """The panels of all weights, and how many had to be made."""
    made = []

    def make(rows, kind):
        made.append(kind)
        return panels_from_gguf(rows, kind)

    with kept_by(keeper):
        panels = [
            kept_panels(FORMATS[kind], outputs, inputs, lambda r=rows, k=kind: make(r, k))
            for kind, outputs, inputs, rows in weights
        ]
    return panels, len(made)


def keeper_of(checkpoint, most_bytes=1 << 30, facts=("gguf",)):
    return PanelFile(checkpoint.path.with_name("panels"), most_bytes, checkpoint, facts)


def write(keeper):
    keeper.write_later()
    for thread in threading.enumerate():
        if thread.name == "panel file":
            thread.join()


def files_of(checkpoint):
    return sorted(checkpoint.path.with_name("panels").glob("*"))


def test_a_later_load_makes_nothing_and_has_the_same_bits(checkpoint, weights):
    keeper = keeper_of(checkpoint)
    first, num_made = panels_of(weights, keeper)
    assert num_made == len(weights)
    write(keeper)
    second, num_made = panels_of(weights, keeper_of(checkpoint))
    assert num_made == 0
    for before, after in zip(first, second, strict=True):
        assert (before.format, before.out_features) == (after.format, after.out_features)
        assert torch.equal(before.data, after.data)
    [file] = files_of(checkpoint)
    assert file.suffix == ".panels" and file.parent.stat().st_mode & 0o077 == 0


def test_nothing_is_read_from_memory_that_is_parked(checkpoint, tmp_path):
    """A model may doze before its weights are written. Its pages are empty then."""
    rows = random_weight(GGUFType.Q8_0, 8192, 1024)
    keeper = keeper_of(checkpoint)
    first, _ = panels_of([(GGUFType.Q8_0, 8192, 1024, rows)], keeper)
    before = first[0].data.clone().numpy().tobytes()  # bytes are not parked
    parked = ParkedMemory(tmp_path, 1 << 30)
    keeper.write_later()
    [thread] = [one for one in threading.enumerate() if one.name == "panel file"]
    thread.join(0.5)
    assert thread.is_alive(), "it waits"
    parked.restore()
    thread.join()
    [file] = files_of(checkpoint)
    assert file.read_bytes()[: len(before)] == before


@pytest.mark.parametrize("change", ["content", "facts", "time"])
def test_another_model_or_another_way_to_load_it_has_another_file(checkpoint, weights, change):
    keeper = keeper_of(checkpoint)
    panels_of(weights, keeper)
    write(keeper)
    facts = ("gguf",)
    if change == "content":
        checkpoint.path.write_bytes(random.randbytes(100))
    elif change == "time":
        os.utime(checkpoint.path, (1, 1))
    else:
        facts = ("gguf-int8",)
    assert panels_of(weights, keeper_of(checkpoint, facts=facts))[1] == len(weights)


def test_a_file_that_does_not_fit_is_removed_and_all_is_made(checkpoint, weights):
    keeper = keeper_of(checkpoint)
    panels_of(weights, keeper)
    write(keeper)
    others = [*weights[:-1], (GGUFType.Q5_0, 16, 32, random_weight(GGUFType.Q5_0, 16, 32))]
    keeper = keeper_of(checkpoint)
    panels, num_made = panels_of(others, keeper)
    assert num_made == 1 and not files_of(checkpoint)
    for one, (kind, _, _, rows) in zip(panels, others, strict=True):
        assert torch.equal(one.data, panels_from_gguf(rows, kind).data)
    write(keeper)
    assert not files_of(checkpoint), "a part of the panels is no file"
    longer = [*weights, weights[0]]
    keeper = keeper_of(checkpoint)
    panels_of(weights, keeper)
    write(keeper)
    assert panels_of(longer, keeper_of(checkpoint))[1] == 1


@pytest.mark.parametrize("damage", ["cut", "empty", "end", "list", "other list"])
def test_a_damaged_file_counts_as_none(checkpoint, weights, damage):
    keeper = keeper_of(checkpoint)
    panels_of(weights, keeper)
    write(keeper)
    [file] = files_of(checkpoint)
    content = bytearray(file.read_bytes())
    if damage == "cut":
        del content[-random.randrange(1, len(content)) :]
    elif damage == "empty":
        content.clear()
    elif damage == "end":
        content[-1 - random.randrange(24)] ^= 1 << random.randrange(8)
    elif damage == "list":
        content[-30] = 255
    else:
        text = random.choice([b"[[1, 2, 3]]", b"{}", b"[7]", b"[[[], null]]"])
        content[-24:] = text + len(text).to_bytes(8, "little") + content[-16:]
    file.write_bytes(content)
    panels, _ = panels_of(weights, keeper_of(checkpoint))
    for one, (kind, _, _, rows) in zip(panels, weights, strict=True):
        assert torch.equal(one.data, panels_from_gguf(rows, kind).data)


def test_files_stay_within_their_bytes_and_the_longest_unused_goes(checkpoint, weights):
    for number in range(2):
        keeper = keeper_of(checkpoint, facts=(number,))
        panels_of(weights, keeper)
        write(keeper)
        os.utime(keeper._path, (100 + number, 100 + number))
    size = keeper._path.stat().st_size
    keeper_of(checkpoint, facts=(0,))  # the older one is used again
    keeper = keeper_of(checkpoint, most_bytes=2 * size, facts=(2,))
    panels_of(weights, keeper)
    write(keeper)
    made = [panels_of(weights, keeper_of(checkpoint, facts=(number,)))[1] for number in range(3)]
    assert made == [0, len(weights), 0]


def test_what_is_larger_than_the_limit_is_not_written(checkpoint, weights):
    keeper = keeper_of(checkpoint, most_bytes=99)
    panels_of(weights, keeper)
    write(keeper)
    assert not files_of(checkpoint)


def test_a_disk_with_little_room_gets_no_file(checkpoint, weights, monkeypatch):
    monkeypatch.setattr(panel_file, "FREE_SHARE", 1.0)
    keeper = keeper_of(checkpoint)
    panels_of(weights, keeper)
    write(keeper)
    assert not files_of(checkpoint)


def mapped_bytes(path):
    """The bytes of a file that are in this process's memory."""
    parts = Path("/proc/self/smaps").read_text().split(str(path))[1:]
    return sum(int(part.split("Rss:", 1)[1].split()[0]) for part in parts) << 10


def test_panels_in_small_pages_are_copied_and_take_no_memory_twice(
    checkpoint, weights, monkeypatch
):
    weights.append((GGUFType.Q8_0, 2048, 1024, random_weight(GGUFType.Q8_0, 2048, 1024)))
    keeper = keeper_of(checkpoint)
    first, _ = panels_of(weights, keeper)
    write(keeper)
    for large in (False, True):
        monkeypatch.setattr(panel_file, "are_pages_large", lambda memory, answer=large: answer)
        keeper = keeper_of(checkpoint)
        second, _ = panels_of(weights, keeper)
        assert all(torch.equal(a.data, b.data) for a, b in zip(first, second, strict=True))
        # The kernel maps up to 64 KiB around each page that is touched.
        mapped = mapped_bytes(files_of(checkpoint)[0])
        assert mapped > 2 << 20 if large else mapped < 256 << 10
