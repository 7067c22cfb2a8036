"""Where compiled operations are kept."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import _triton, building, cache_folder, isa, native
from kernels.measured.self_benchmark import COMMON_TYPES, product_times
from kernels.shared import stages


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_folder, "_folder", cache_folder.DEFAULT)
    if _triton.AVAILABLE:  # put back afterwards
        cache = _triton.triton.knobs.cache
        monkeypatch.setattr(cache, "dir", cache.get_triton_dir("cache"))
    return tmp_path / "elsewhere"


def test_by_default_it_is_in_the_users_cache(folder):
    assert cache_folder.cache_folder() == Path.home() / ".cache" / "tandem" / "kernels"


def test_everything_goes_where_it_was_told(folder):
    cache_folder.use_cache_folder(folder)
    assert building.library_file("g++").parent == folder
    assert stages._file().parent == folder
    if _triton.AVAILABLE:
        assert Path(_triton.triton.knobs.cache.dir) == folder / "triton"


@pytest.mark.skipif(not _triton.AVAILABLE, reason="Triton is not installed: it keeps nothing")
def test_tritons_own_setting_is_kept(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(_triton.triton.knobs.cache, "dir", str(tmp_path / "own"))
    cache_folder.use_cache_folder(folder)
    assert _triton.triton.knobs.cache.dir == str(tmp_path / "own")


@pytest.mark.slow
def test_the_command_builds_into_it(folder):
    # What is compiled and measured already is brought along: linking is left to do.
    native.library()
    product_times(COMMON_TYPES, torch.bfloat16)
    folder.mkdir()
    for pattern in ("*.o", "*.times.json"):
        for there in cache_folder.cache_folder().glob(pattern):
            shutil.copy(there, folder)
    command = [sys.executable, "-m", "kernels", "--kernels-dir", str(folder)]
    command += ["--cpu-isa", isa.chosen()]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert list(folder.glob("cpu-*.so"))
