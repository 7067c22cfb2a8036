"""Findings about the cache folder and its disk."""

import os
import random
import shutil
from types import SimpleNamespace

from engine.contract.model_spec import ModelSpec
from server.doctor import cache


def specs(*refs):
    return [ModelSpec.create(ref) for ref in refs]


def test_a_folder_that_can_be_made_is_fine_and_is_not_made(tmp_path):
    assert cache.cache_folder(tmp_path).health == "ok"
    assert cache.cache_folder(tmp_path / "a" / "b").health == "ok"
    assert not (tmp_path / "a").exists()


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    finding = cache.cache_folder(tmp_path / "file" / "cache")
    assert finding.health == "broken"
    assert f"{tmp_path / 'file'} is what exists" in finding.found
    assert "--cache-dir" in finding.fix
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    assert cache.cache_folder(tmp_path).health == "broken"


def test_a_disk_that_runs_no_programs(tmp_path, monkeypatch):
    flags = SimpleNamespace(f_flag=os.ST_NOEXEC | os.ST_RELATIME)
    monkeypatch.setattr(os, "statvfs", lambda path: flags)
    assert cache.cache_folder(tmp_path).health == "limited"


def test_room_for_what_is_not_here_yet(tmp_path, monkeypatch):
    free = random.randrange(150, 400) * 1_000_000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    models = specs("smollm2-135m-instruct", "tandem-shapes", "org/other")
    finding = cache.disk(tmp_path / "new", models)
    assert finding.health == "broken"
    assert f"{free / 1e9:.1f} GB free" in finding.found
    (here := tmp_path / "new" / "models" / "smollm2-135m-instruct").mkdir(parents=True)
    (here / ".lock").touch()
    assert cache.disk(tmp_path / "new", models).health == "broken"
    (here / "model.gguf").touch()
    assert cache.disk(tmp_path / "new", models).health == "ok"


def test_the_kv_store(tmp_path):
    assert cache.kv_store(tmp_path / "new" / "store", 1).health == "ok"
    assert cache.kv_store(tmp_path, 1 << 62).health == "limited"
    (tmp_path / "file").write_bytes(b"")
    finding = cache.kv_store(tmp_path / "file" / "store", 1)
    assert finding.health == "broken" and "--kv-store" in (finding.fix or "")
