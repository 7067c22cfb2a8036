"""Findings about packages, compiler and processor."""

import importlib.metadata
import shutil

import pytest

from engine.processes.own_packages import module_alone
from kernels import isa
from server.doctor import processor, software
from server.doctor.processor import processor as processor_finding


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A function that makes programs of a name and script, which are the only ones on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def add(name, script):
        file = folder / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    return add


def test_the_compiler_here_is_found():
    finding = software.compiler("auto")
    has_one = any(map(shutil.which, ("c++", "g++", "clang++")))
    assert finding.health == ("ok" if has_one else "limited")


def test_without_a_compiler_the_distributions_own_command_is_named(path, monkeypatch):
    path("dnf", "")
    monkeypatch.setattr(software.os, "geteuid", lambda: 1000)
    finding = software.compiler("auto")
    assert (finding.health, finding.fix) == ("limited", "sudo dnf install gcc-c++")
    assert "no C++ compiler" in finding.found
    monkeypatch.setattr(software.os, "geteuid", lambda: 0)
    assert software.compiler("auto").fix == "dnf install gcc-c++"


def test_a_compiler_that_cannot_build_is_told_with_its_reason(path):
    path("g++", 'echo "x.cpp:1:10: fatal error: omp.h: No such file or directory" >&2; exit 1')
    finding = software.compiler("auto")
    assert finding.health == "limited"
    assert finding.found.endswith("run much more slowly: omp.h: No such file or directory")
    assert finding.fix == "install g++"


def test_no_compiler_is_needed_where_operations_came_compiled(path, tmp_path, monkeypatch):
    def module(path):
        found = module_alone(path)
        found.PREBUILT = tmp_path
        found.features = lambda: frozenset(isa.RUNGS["x86-64-v4"])
        return found

    (tmp_path / "x86-64-v3.0123.so").touch()
    monkeypatch.setattr(software, "module_alone", module)
    finding = software.compiler("auto")
    assert (finding.health, finding.fix) == ("ok", None)
    assert (
        finding.found == "not needed: the installation includes operations compiled for x86-64-v3"
    )
    assert "no C++ compiler" in software.compiler("x86-64-v4").found


def test_missing_packages_are_named(monkeypatch):
    version = importlib.metadata.version

    def without_two(name):
        if name in ("httpx", "numpy"):
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    assert software.packages().health == "ok"
    monkeypatch.setattr(importlib.metadata, "version", without_two)
    finding = software.packages()
    assert (finding.health, finding.fix) == ("broken", "pip install httpx numpy")


def test_a_distribution_that_broke_ours_is_named(monkeypatch):
    monkeypatch.setattr(software, "foreign_distributions", lambda: ["kernels"])
    finding = software.packages()
    assert finding.health == "broken"
    assert finding.fix.startswith("pip uninstall kernels && pip install")


@pytest.mark.parametrize(
    ("rung", "wanted", "health", "words"),
    [
        ("x86-64-v4", "auto", "ok", "operations for x86-64-v4, the best it supports"),
        ("x86-64-v4", "x86-64-v3", "ok", "for x86-64-v3, as asked; its best is x86-64-v4"),
        ("x86-64-v3", "x86-64-v4-vnni", "broken", "avx512_vnni, which x86-64-v4-vnni needs"),
        (None, "auto", "limited", "avx2"),
    ],
)
def test_instructions(rung, wanted, health, words, monkeypatch):
    def module(path):
        found = module_alone(path)
        found.features = lambda: frozenset(isa.RUNGS[rung] if rung else ("sse2",))
        return found

    monkeypatch.setattr(processor, "module_alone", module)
    finding = processor_finding(wanted)
    assert finding.health == health
    assert words in finding.found
    assert (finding.fix is None) == (health == "ok")
