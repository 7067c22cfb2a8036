"""Builds and loads the C++ operations (`<op>/*.cpp`).

They have a plain C interface, so no PyTorch header is compiled: all take less than a minute, once
per machine and instruction set (`kernels/isa.py`). Each source's object file is cached under a hash
of the source, the headers in `kernels/cpp` and those of its folder, the compiler and the processor;
so is the library that they are linked to. Without a compiler the composed PyTorch implementations
run instead, and one warning says so.
"""

import concurrent.futures
import contextlib
import ctypes
import errno
import functools
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import torch

from kernels import compilers, isa
from kernels.cache_folder import cache_folder

Function = Callable[..., None]

KERNELS = Path(__file__).parent
SHARED = "cpp"
"""The folder in `KERNELS` of the headers that several operations include."""
FLAGS = (
    "-O3",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    # Loops peeled for alignment would sum in an order that depends on addresses.
    "--param=vect-max-peeling-for-alignment=0",
    "-std=c++17",
    "-fPIC",
)
BUILD_TIMEOUT_S = 1200
"""Wall time: on a busy machine half a minute of computing can take many minutes."""
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Storage types and their codes in `native.h`."""

BUILD_CORE_S = 110
"""Core-seconds of a whole build on an AMD EPYC (Zen 5)."""

_UNFINISHED = "building-"
_ROOM_BYTES = 64 << 20
"""Free space needed on the cache's disk for object files, the library, and temporary files."""

_OWN_FLAGS = re.compile(r"^// compile with (-\S+)$", re.MULTILINE)
"""A source may ask for one more option, such as to round every operation by itself."""

_CTYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float}

log = logging.getLogger(__name__)


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the loaded operations, built if necessary; None if they cannot be built."""
    compiler = compilers.find()
    if compiler is None:
        log.warning(
            "no C++ compiler found; CPU operations run on PyTorch, which is slower; install g++"
        )
        return None
    try:
        return ctypes.CDLL(str(_built(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        log.warning(
            "the C++ operations cannot be built; PyTorch runs instead, which is slower: %s",
            reason[-2000:],
        )
        return None


def is_built() -> bool:
    """Whether `library()` would return at once."""
    compiler = compilers.find()
    return compiler is None or _target(compiler).exists()


def share_built() -> Callable[[], float]:
    """Return a function that tells which share of the library, 0 to 1, any process has compiled."""
    compiler = compilers.find()
    sizes = {_object(compiler, source): _size(source) for source in _sources()} if compiler else {}
    total = sum(sizes.values()) or 1
    return lambda: sum(size for path, size in sizes.items() if path.exists()) / total


def library_path() -> Path:
    """Return the path of `library()`; its name depends on sources, compiler, instructions and
    processor.

    Raises:
        RuntimeError: there is no library.
    """
    loaded = library()
    if loaded is None:
        raise RuntimeError("the C++ operations are not available")
    return Path(loaded._name)


def missing() -> str | None:
    """Return the reason why there is no library, or None if there is one, building it if
    necessary."""
    if library() is not None:
        return None
    return "no C++ compiler" if compilers.find() is None else "the C++ operations cannot be built"


def compiler_name() -> str | None:
    """Return the name of the first C++ compiler that is found, in its own words."""
    compiler = compilers.find()
    return None if compiler is None else compilers.version(compiler).splitlines()[0]


def flags() -> list[str]:
    """Return the compiler's options, without those that a source asks for."""
    return [*isa.compiler_flags(), *FLAGS]


def _built(compiler: str) -> Path:
    """Return the path of the library. Processes that start together leave the build to one of
    them."""
    target = _target(compiler)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(target.with_suffix(".lock"), timeout=BUILD_TIMEOUT_S):
            if not target.exists():
                _build(compiler, target)
    return target


def _build(compiler: str, target: Path) -> None:
    # Long ones first: one of them alone at the end would leave other cores idle.
    sources = sorted(_sources(), key=_size, reverse=True)
    if shutil.disk_usage(target.parent).free < _ROOM_BYTES:
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
    objects = [str(build.result()) for build in builds]
    _run_to(target, [compiler, *flags(), "-shared", *objects])


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


def _target(compiler: str) -> Path:
    return cache_folder() / f"cpu-{_key(compiler, _sources())}.so"


def _key(compiler: str, sources: list[Path]) -> str:
    """Return a hash of everything that a compiled file depends on."""
    parts = [compilers.version(compiler), " ".join(flags()), platform.machine(), _processor()]
    folders = [KERNELS / SHARED, *(source.parent for source in sources)]
    headers = [path for folder in folders for path in sorted(folder.glob("*.h"))]
    texts = [path.read_text() for path in [*headers, *sources]]
    return hashlib.sha256("\0".join(parts + texts).encode()).hexdigest()[:16]


def _processor() -> str:
    """Describe the features that `-march=native` depends on."""
    return " ".join(sorted(isa.features())) or platform.processor()


def function(name: str, signature: str) -> Function:
    """Return the C function `name` with its argument types set: `p` pointer, `i` integer, `f`
    float.

    Raises:
        RuntimeError: there is no library; `supports` functions ask `library()` first.
    """
    loaded = library()
    if loaded is None:
        raise RuntimeError(f"{name}: the C++ operations are not available")
    found = loaded[name]
    found.argtypes = [_CTYPES[letter] for letter in signature]  # type: ignore[misc]
    found.restype = None

    def call(*arguments: object) -> None:
        if _noted.calls is None:
            found(*arguments)
        else:
            _noted.calls.append(NotedCall(found, signature, arguments))

    return call


@dataclass(frozen=True, slots=True)
class NotedCall:
    """A call of a C function that was noted instead of being made."""

    function: Any
    signature: str
    """A letter per argument, as for `function`."""
    arguments: tuple[Any, ...]

    def __call__(self) -> None:
        self.function(*self.arguments)


class _Noted(threading.local):
    """The calls of C functions that are being noted in a thread."""

    calls: list[Callable[[], object]] | None = None


_noted = _Noted()


@contextlib.contextmanager
def noting_calls() -> Iterator[list[Callable[[], object]]]:
    """Note this thread's calls of C functions in the yielded list instead of making them. Their
    outputs stay unset."""
    calls: list[Callable[[], object]] = []
    with _noting_to(calls):
        yield calls


def making_calls() -> contextlib.AbstractContextManager[None]:
    """Make calls instead of noting them within this context, even inside `noting_calls`."""
    return _noting_to(None)


@contextlib.contextmanager
def _noting_to(calls: list[Callable[[], object]] | None) -> Iterator[None]:
    before, _noted.calls = _noted.calls, calls
    try:
        yield
    finally:
        _noted.calls = before


def is_noting() -> bool:
    """Whether this thread's calls are being noted."""
    return _noted.calls is not None


def runs_on(first: torch.Tensor, *others: torch.Tensor) -> bool:
    """Whether the C++ operations take these tensors: all on the CPU and of one known dtype."""
    # This runs before every operation of a step, so it avoids generators and `device.type`.
    dtype = first.dtype
    if dtype not in DTYPES or not first.is_cpu:
        return False
    for other in others:
        if other.dtype is not dtype or not other.is_cpu:
            return False
    return library() is not None
