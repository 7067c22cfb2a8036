"""Building the C++ operations: cached, atomic, and never in the way when it fails."""

import concurrent.futures
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from kernels import building, cache_folder, compilers, native, silu_mul


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_folder, "_folder", tmp_path / "cache")
    native.library.cache_clear()
    yield tmp_path / "cache"
    native.library.cache_clear()


def test_a_machine_without_a_compiler_runs_pytorch_and_is_told_once(
    fresh_cache, monkeypatch, caplog
):
    monkeypatch.setattr(compilers, "NAMES", ("no-such-compiler",))
    x = torch.randn(3, 8)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            torch.testing.assert_close(silu_mul(x), silu_mul.reference(x))
    assert [record.message for record in caplog.records] == [
        "no C++ compiler; CPU operations run on PyTorch, which is slower; install g++"
    ]


def test_a_failing_build_says_what_the_compiler_said(fresh_cache, monkeypatch, caplog):
    monkeypatch.setattr(building, "FLAGS", ("-no-such-flag",))
    with caplog.at_level(logging.WARNING):
        assert native.library() is None
    assert "no-such-flag" in caplog.text


def test_a_failing_build_does_not_go_on_with_the_others(fresh_cache, monkeypatch, caplog):
    started = []
    is_cancelled = threading.Event()

    def fail(target, command):
        started.append(target)
        if len(started) > 1:  # else all have failed before the first failure is heard of
            assert is_cancelled.wait(60)
        raise OSError("no room")

    class Pool(ThreadPoolExecutor):
        def shutdown(self, *args, **options):
            super().shutdown(wait=False, cancel_futures=options.get("cancel_futures", False))
            is_cancelled.set()
            super().shutdown(*args, **options)

    monkeypatch.setattr(building, "_run_to", fail)
    monkeypatch.setattr(building.os, "cpu_count", lambda: 1)
    monkeypatch.setattr(building.concurrent.futures, "ThreadPoolExecutor", Pool)
    with caplog.at_level(logging.WARNING):
        assert native.library() is None
    assert "no room" in caplog.text
    assert len(started) <= 2, "one, and what a thread had taken already"


def test_a_full_disk_is_said_before_anything_is_compiled(fresh_cache, monkeypatch, caplog):
    monkeypatch.setattr(building, "_run_to", pytest.fail)
    full = building.shutil.disk_usage(fresh_cache.parent)._replace(free=building._ROOM_BYTES - 1)
    monkeypatch.setattr(building.shutil, "disk_usage", lambda path: full)
    with caplog.at_level(logging.WARNING):
        assert native.library() is None
    assert "the disk of the cache folder is full" in caplog.text


def test_the_share_that_is_built(fresh_cache, monkeypatch):
    share = building.share_built()
    assert share() == 0.0
    compiler = compilers.find()
    if compiler is None:
        pytest.skip("no C++ compiler")
    sources = building._sources()
    fresh_cache.mkdir()
    seen = [0.0]
    for source in sources:
        building._object(compiler, source).touch()
        seen.append(share())
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_an_unwritable_cache_is_no_failure(monkeypatch, caplog):
    native.library.cache_clear()
    monkeypatch.setattr(cache_folder, "_folder", Path("/proc/nowhere"))
    assert native.library() is None
    native.library.cache_clear()


def test_a_source_is_built_anew_when_a_header_changes_that_it_may_include(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "KERNELS", tmp_path)
    sources = [tmp_path / op / "cpu.cpp" for op in ("one", "other")]
    headers = [tmp_path / "one" / "part.h", tmp_path / building.SHARED / "shared.h"]
    for path in [*sources, *headers]:
        path.parent.mkdir(exist_ok=True)
        path.write_text("")

    def keys():
        return [building._key("g++", [source]) for source in sources] + [
            building.library_file("g++")
        ]

    before = keys()
    headers[0].write_text("changed")
    after = keys()
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True, False]
    headers[1].write_text("changed")
    assert not set(keys()) & set(after)


def test_an_operation_may_have_several_sources(fresh_cache, tmp_path, monkeypatch):
    if compilers.find() is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(building, "KERNELS", tmp_path)
    for name in ("first", "second"):
        source = tmp_path / "op" / f"{name}.cpp"
        source.parent.mkdir(exist_ok=True)
        source.write_text(f'extern "C" void {name}() {{}}')
    loaded = native.library()
    assert loaded.first
    assert loaded.second
    assert native.library_path().parent == fresh_cache


def test_what_killed_builds_left_is_removed_once_it_is_old(tmp_path):
    old, new = tmp_path / "building-old", tmp_path / "building-new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "half.o").write_bytes(b"x")
    os.utime(old, (0, 0))
    building._run_to(tmp_path / "target", ["sort", os.devnull])  # any program that takes -o
    assert not old.exists()
    assert new.exists()


@pytest.mark.slow
def test_of_builds_at_the_same_time_one_is_done(fresh_cache, monkeypatch):
    # A part of them, unoptimised: many times faster to build, and as good for this.
    monkeypatch.setattr(building, "FLAGS", ("-O0", *building.FLAGS[1:]))
    sources = [building.KERNELS / op / "cpu.cpp" for op in ("rms_norm", "silu_mul")]
    monkeypatch.setattr(building, "_sources", lambda: sources)
    made = []
    run_to = building._run_to

    def counted(target, command):
        made.append(target.name)
        run_to(target, command)

    monkeypatch.setattr(building, "_run_to", counted)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        built = list(pool.map(building.built, ["g++", "g++"]))
    assert built[0] == built[1]
    assert len(made) == len(set(made)) == len(sources) + 1
    left = [path for path in fresh_cache.iterdir() if path.suffix not in (".o", ".lock")]
    assert [path.name for path in left] == [built[0].name]
    assert native.library() is not None
