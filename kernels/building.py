"""Compiles the C++ operations (`<op>/*.cpp`) into one library.

They have a plain C interface, so no PyTorch header is compiled: all take less than a minute, once
per machine and instruction set (`kernels/isa.py`). Each source's object file is cached under a hash
of the source, the headers in `kernels/cpp` and those of its folder, the compiler and the processor;
so is the library that they are linked to. A wheel brings libraries that are compiled already, each
under a hash of the sources and options, so that none of other sources is ever loaded.
"""

import concurrent.futures
import contextlib
import errno
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import filelock

from kernels import compilers, isa
from kernels.cache_folder import cache_folder

KERNELS = Path(__file__).parent
SHARED = "cpp"
"""The folder in `KERNELS` of the headers that several operations include."""
FLAGS = (
    "-O3",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fno-trapping-math",
    # Loops peeled for alignment would sum in an order that depends on addresses.
    "--param=vect-max-peeling-for-alignment=0",
    "-std=c++17",
    "-fPIC",
)
BUILD_TIMEOUT_S = 1200
"""Wall time: on a busy machine half a minute of computing can take many minutes."""
BUILD_CORE_S = 110
"""Core-seconds of a whole build on an AMD EPYC (Zen 5)."""

_UNFINISHED = "building-"
_ROOM_BYTES = 64 << 20
"""Free space needed on the cache's disk for object files, the library, and temporary files."""

_OWN_FLAGS = re.compile(r"^// compile with (-\S+)$", re.MULTILINE)
"""A source may ask for one more option, such as to round every operation by itself."""


def share_built() -> Callable[[], float]:
    """Return a function that tells which share of the library, 0 to 1, any process has compiled."""
    compiler = compilers.find()
    sizes = {_object(compiler, source): _size(source) for source in _sources()} if compiler else {}
    total = sum(sizes.values()) or 1
    return lambda: sum(size for path, size in sizes.items() if path.exists()) / total


def prebuilt() -> Path | None:
    """Return the path of the library that came with the installation for the chosen instructions
    and just these sources; None if there is none."""
    if isa.chosen() not in isa.prebuilt_rungs():
        return None  # as in every checkout, whose sources need not be read for this
    path = isa.PREBUILT / prebuilt_name()
    return path if path.exists() else None


def prebuilt_name() -> str:
    """Return the file name of a library that is compiled for the chosen rung and any processor that
    has it: the rung, and a hash of the sources and the compiler's options."""
    return f"{isa.chosen()}.{_hash([' '.join(flags())], _sources())}.so"


def prebuild(compiler: str, folder: Path) -> Path:
    """Compile the library for the chosen rung into a folder, and return its path."""
    target = folder / prebuilt_name()
    if not target.exists():
        # No OpenMP library is named: the operations share the one of torch, whose name differs
        # from build to build of torch.
        _run_to(target, [compiler, "-shared", *_objects(compiler, cache_folder())])
    return target


def compiler_name() -> str | None:
    """Return the name of the first C++ compiler that is found, in its own words."""
    compiler = compilers.find()
    return None if compiler is None else compilers.version(compiler).splitlines()[0]


def flags() -> list[str]:
    """Return the compiler's options, without those that a source asks for."""
    return [*isa.compiler_flags(), *FLAGS]


def built(compiler: str) -> Path:
    """Return the path of the library. Processes that start together leave the build to one of
    them."""
    target = library_file(compiler)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(target.with_suffix(".lock"), timeout=BUILD_TIMEOUT_S):
            if not target.exists():
                _build(compiler, target)
    return target


def _build(compiler: str, target: Path) -> None:
    _run_to(target, [compiler, "-fopenmp", "-shared", *_objects(compiler, target.parent)])


def _objects(compiler: str, folder: Path) -> list[str]:
    """Return the paths of all object files, of which those that the folder lacks are compiled."""
    # Long ones first: one of them alone at the end would leave other cores idle.
    sources = sorted(_sources(), key=_size, reverse=True)
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < _ROOM_BYTES:
        raise OSError(
            errno.ENOSPC,
            "the disk of the cache folder is full; free space or set another cache_dir",
        )
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        builds = [pool.submit(_compiled, compiler, source) for source in sources]
        try:
            for build in concurrent.futures.as_completed(builds):
                build.result()
        finally:  # the others would fail, too, after minutes
            pool.shutdown(wait=False, cancel_futures=True)
    return [str(build.result()) for build in builds]


def _compiled(compiler: str, source: Path) -> Path:
    """Return the path of one source's object file."""
    target = _object(compiler, source)
    if not target.exists():
        own = _OWN_FLAGS.findall(source.read_text())
        _run_to(target, [compiler, *flags(), *own, f"-I{KERNELS / SHARED}", "-c", str(source)])
    return target


def _object(compiler: str, source: Path) -> Path:
    name = f"{source.parent.name}-{source.stem}-{_key(compiler, [source])}.o"
    return cache_folder() / name


def _run_to(target: Path, command: list[str]) -> None:
    """Run a compiler so that `target` is either complete or absent."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target.parent)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=_UNFINISHED) as folder:
        unfinished = Path(folder) / target.name
        subprocess.run(
            [*command, "-o", str(unfinished)],
            check=True,
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT_S,
        )
        os.replace(unfinished, target)


def _remove_abandoned(cache: Path) -> None:
    """Remove files of builds that were killed."""
    for folder in cache.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(OSError):  # another process may remove it, too
            if time.time() - folder.stat().st_mtime > 2 * BUILD_TIMEOUT_S:
                shutil.rmtree(folder)


def _sources() -> list[Path]:
    return sorted(KERNELS.glob("*/*.cpp"))


def _size(source: Path) -> int:
    """Return the size of a source in bytes, including its folder's headers but not shared ones."""
    return sum(path.stat().st_size for path in [source, *source.parent.glob("*.h")])


def library_file(compiler: str) -> Path:
    """Return where the library is kept; its name depends on sources, compiler, instructions and
    processor."""
    return cache_folder() / f"cpu-{_key(compiler, _sources())}.so"


def _key(compiler: str, sources: list[Path]) -> str:
    """Return a hash of everything that a compiled file depends on."""
    parts = [compilers.version(compiler), " ".join(flags()), platform.machine(), _processor()]
    return _hash(parts, sources)


def _hash(parts: list[str], sources: list[Path]) -> str:
    """Return a hash of these parts, the sources, and the headers that they may include."""
    folders = [KERNELS / SHARED, *(source.parent for source in sources)]
    headers = [path for folder in folders for path in sorted(folder.glob("*.h"))]
    texts = [path.read_text() for path in [*headers, *sources]]
    return hashlib.sha256("\0".join(parts + texts).encode()).hexdigest()[:16]


def _processor() -> str:
    """Describe the features that `-march=native` depends on."""
    return " ".join(sorted(isa.features())) or platform.processor()
