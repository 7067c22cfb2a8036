"""Fetching a model: the files that count, from real folders and the program's own model."""

import random
import subprocess
import sys

import pytest

from engine.commands.pulling import pull
from engine.contract.orders import PullingOrder
from engine.errors import ModelNotFound
from engine.processes.own_packages import HOME


def pulled(model, tmp_path, **changes):
    order = PullingOrder(model=str(model), cache_dir=tmp_path / "cache", **changes)
    return pull(order, lambda message: None)


def test_the_programs_own_model(tmp_path):
    report = pulled("tandem-shapes", tmp_path)
    folder = HOME / "engine" / "data" / "shapes"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert report == {"model": "tandem-shapes", "path": str(folder), "bytes": size}


def test_all_parts_of_a_gguf_file_count(tmp_path):
    sizes = [random.randrange(9, 999) for _ in range(3)]
    for number, size in enumerate(sizes, 1):
        part = tmp_path / f"m-{number:05}-of-00003.gguf"
        part.write_bytes(b"GGUF" + random.randbytes(size - 4))
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    report = pulled(tmp_path / "m-00002-of-00003.gguf", tmp_path)
    assert report["bytes"] == sum(sizes)
    assert report["path"] == str(tmp_path / "m-00001-of-00003.gguf")


def test_both_files_of_an_ncnn_model_count(tmp_path):
    (tmp_path / "net.param").write_bytes(b"7767517\n")
    (tmp_path / "net.bin").write_bytes(random.randbytes(50))
    assert pulled(tmp_path / "net.param", tmp_path)["bytes"] == 58


@pytest.mark.parametrize("model", ["u2netp", "org/nothing"])
def test_nothing_is_fetched_offline(model, tmp_path):
    with pytest.raises(ModelNotFound, match="offline mode is on"):
        pulled(model, tmp_path, offline=True)


def test_it_needs_no_torch():
    code = "import sys, engine.commands.pulling; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=HOME)
    assert done.stdout == "False\n", done.stderr
