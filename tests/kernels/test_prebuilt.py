"""Operations that come compiled with an installation: used without a compiler, and never if they
are of other sources."""

import ctypes
import logging
import random

import pytest
import torch

from kernels import building, cache_folder, compilers, isa, native
from tests.helpers.kernels.rungs import HAS_RUNGS, X86_RUNGS

RUNG = X86_RUNGS[0] if HAS_RUNGS else "armv8-a"
SOURCE = """
#include <omp.h>
extern "C" void answer(int64_t* out) { out[0] = %d; out[1] = omp_get_max_threads(); }
"""

pytestmark = pytest.mark.skipif(
    compilers.find() is None or bool(isa.missing(RUNG)), reason=f"no compiler, or no {RUNG}"
)


@pytest.fixture
def number():
    return random.getrandbits(31)


@pytest.fixture
def installed(tmp_path, monkeypatch, number):
    """The folder of an installation with one operation, which is compiled for the lowest rung."""
    folder = tmp_path / "kernels"
    header, source = folder / building.SHARED / "shared.h", folder / "op" / "cpu.cpp"
    for path, text in ((header, "#include <cstdint>"), (source, '#include "shared.h"\n' + SOURCE)):
        path.parent.mkdir(parents=True)
        path.write_text(text % number if "%d" in text else text)
    monkeypatch.setattr(building, "KERNELS", folder)
    monkeypatch.setattr(isa, "PREBUILT", folder / "prebuilt")
    monkeypatch.setattr(cache_folder, "_folder", tmp_path / "builder")
    with isa.compiling_for(RUNG):
        building.prebuild(compilers.find(), isa.PREBUILT)
    monkeypatch.setattr(cache_folder, "_folder", tmp_path / "cache")
    monkeypatch.setattr(isa, "_chosen", isa.best())
    native.library.cache_clear()
    yield folder
    native.library.cache_clear()


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setattr(compilers, "NAMES", ("no-such-compiler",))


def answer():
    out = (ctypes.c_int64 * 2)()
    native.function("answer", "p")(ctypes.addressof(out))
    return list(out)


def test_they_run_without_a_compiler_on_the_threads_of_torch(installed, number, no_compiler):
    assert isa.chosen() == RUNG
    assert native.is_built()
    threads = random.randint(2, 7)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert answer() == [number, threads]
    finally:
        torch.set_num_threads(before)
    assert native.library_path().parent == isa.PREBUILT
    assert not cache_folder.cache_folder().exists()


@pytest.mark.parametrize("changed", ["op/cpu.cpp", "cpp/shared.h", "op/new.h"])
def test_those_of_other_sources_are_refused(installed, changed, no_compiler, caplog):
    with (installed / changed).open("a") as file:
        file.write("// changed\n")
    with caplog.at_level(logging.WARNING):
        assert native.library() is None
    assert "this installation's operations are compiled from other sources" in caplog.text
    assert "install g++" in caplog.text


def test_those_of_other_options_are_refused(installed, monkeypatch):
    assert building.prebuilt() is not None
    monkeypatch.setattr(building, "FLAGS", (*building.FLAGS, "-O1"))
    assert building.prebuilt() is None


def test_where_a_compiler_is_others_are_built_in_their_place(installed, number):
    source = installed / "op" / "cpu.cpp"
    source.write_text(source.read_text().replace(str(number), str(number + 1)))
    assert answer()[0] == number + 1
    assert native.library_path().parent == cache_folder.cache_folder()


def test_one_that_does_not_load_is_told_of(installed, number, caplog):
    (library,) = isa.PREBUILT.iterdir()
    library.write_bytes(b"no library")
    with caplog.at_level(logging.WARNING):
        assert answer()[0] == number, "it was built"
    assert "the operations of this installation cannot be loaded" in caplog.text


def test_instructions_that_did_not_come_are_named(installed, no_compiler, monkeypatch):
    monkeypatch.setattr(isa, "_chosen", isa.NATIVE)
    words = f"no C++ compiler, and this installation's operations are for {RUNG}, not native"
    assert native.missing() == words


@pytest.mark.skipif(not HAS_RUNGS, reason="rungs of another processor")
def test_the_highest_rung_that_the_processor_has_is_best(tmp_path, monkeypatch):
    monkeypatch.setattr(isa, "PREBUILT", tmp_path)
    assert isa.best() == isa.NATIVE
    came = set(random.sample(X86_RUNGS, 3))
    for rung in came:
        (tmp_path / f"{rung}.0123.so").touch()
    monkeypatch.setattr(isa, "_chosen", isa.NATIVE)
    for has in X86_RUNGS:
        monkeypatch.setattr(isa, "features", lambda has=has: frozenset(isa.RUNGS[has]))
        can = [rung for rung in X86_RUNGS if rung in came and not isa.missing(rung)]
        isa.choose("auto")
        assert isa.chosen() == (can[-1] if can else isa.NATIVE)
    monkeypatch.setattr(isa, "features", lambda: frozenset(("sse2",)))
    assert isa.best() == isa.NATIVE
