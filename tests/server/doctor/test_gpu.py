"""Findings about GPUs, with drivers made for the test."""

import importlib.util
import shutil
import subprocess
from types import SimpleNamespace

import pytest

from server.doctor import gpu

_DRIVER = """
#include <string.h>
#include <stddef.h>
int cuInit(unsigned flags) { return CODE; }
int cuDriverGetVersion(int *version) { *version = VERSION; return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
    strcpy(name, device ? "B" : "A");
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 24UL << 30; return 0; }
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes a machine with a driver (its version and the code of its start; without them none), a
    build of torch, Triton or not, and a GPU in its slots or not."""

    def make(version=None, code=0, cuda="12.8", triton=True, has_gpu=True):
        compiler = shutil.which("cc") or shutil.which("c++")
        if version is not None and compiler is None:
            pytest.skip("needs a C compiler")
        library = tmp_path / "libcuda.so.1"
        if version is not None:
            source = _DRIVER.replace("VERSION", str(version)).replace("CODE", str(code))
            subprocess.run(
                [compiler, "-x", "c", "-shared", "-fPIC", "-o", str(library), "-"],
                input=source.encode(),
                check=True,
            )
        (tmp_path / "version.py").write_text(
            f"cuda: Optional[str] = {cuda!r}\nhip: Optional[str] = '6.1'\n"
        )
        torch = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
        specs = {"torch": torch, "triton": torch if triton else None}
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: specs[name])
        monkeypatch.setattr(gpu, "_DRIVER", str(library))
        monkeypatch.setattr(gpu, "_is_there", lambda: has_gpu)

    return make


def test_a_gpu_that_can_be_used(machine):
    machine(version=12080)
    finding = gpu.gpu("auto")
    assert finding.health == "ok"
    assert finding.found == "A (24 GiB), B (24 GiB), driver for CUDA 12.8, torch for 12.8"
    assert gpu.gpu("cuda:1").health == "ok"


@pytest.mark.parametrize(
    ("given", "words", "fix"),
    [
        ({"version": 11040}, "the driver runs CUDA up to 11.4", "a driver for CUDA 12"),
        ({"version": 12080, "cuda": None}, "a build without CUDA", "force-reinstall torch"),
        ({"version": 12080, "code": 999}, "error 999", "driver again"),
        ({"version": 12080, "code": 100}, "driver reports none", "CUDA_VISIBLE_DEVICES"),
        ({}, "without its driver", "nvidia.com/drivers"),
        ({"version": 12080, "triton": False}, "without Triton", "tandem-server[gpu]"),
    ],
)
def test_what_is_missing_is_named_with_its_fix(given, words, fix, machine):
    machine(**given)
    finding = gpu.gpu("auto")
    assert finding.health == "limited"
    assert words in finding.found and fix in finding.fix


@pytest.mark.parametrize("given", [{}, {"version": 11040}, {"version": 12080, "code": 100}])
def test_a_gpu_that_is_asked_for_must_be_there(given, machine):
    machine(**given)
    assert gpu.gpu("cuda").health == "broken"
    assert gpu.gpu("cpu").health == "ok"


def test_a_machine_without_one_is_fine(machine):
    machine(has_gpu=False)
    assert gpu.gpu("auto").health == "ok"


def test_slots_are_read(tmp_path):
    for name, vendor, kind in (("a", "0x8086", "0x030000"), ("b", "0x10de", "0x040300")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")
    assert not gpu._is_there(tmp_path)
    (tmp_path / "b" / "class").write_text("0x030200\n")
    assert gpu._is_there(tmp_path)


def test_the_build_of_torch_is_what_torch_says():
    import torch

    assert gpu.torch_cuda() == torch.version.cuda
