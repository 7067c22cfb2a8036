"""Loads the C++ operations, and calls their functions.

A library that came compiled with the installation is loaded, or else one that is built here
(`kernels/building.py`). Without either, the composed PyTorch implementations run, and one warning
says so.
"""

import contextlib
import ctypes
import functools
import itertools
import logging
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kernels import building, compilers, isa

Function = Callable[..., None]

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Storage types and their codes in `native.h`."""

_CTYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float}

log = logging.getLogger(__name__)


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the loaded operations, built if necessary; None if they cannot be built."""
    ready, compiler = building.prebuilt(), compilers.find()
    if ready is not None:
        try:
            return _loaded_prebuilt(ready)
        except OSError as error:
            log.warning("the operations of this installation cannot be loaded: %s", error)
    if compiler is None:
        log.warning("%s; CPU operations run on PyTorch, which is slower; install g++", lack())
        return None
    try:
        return ctypes.CDLL(str(building.built(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        log.warning(
            "the C++ operations cannot be built; PyTorch runs instead, which is slower: %s",
            reason[-2000:],
        )
        return None


def _loaded_prebuilt(path: Path) -> ctypes.CDLL:
    if not hasattr(ctypes.CDLL(None), "omp_get_max_threads"):
        # Most builds of torch have made it known to all; for the others, this does.
        packages = Path(torch.__file__).parents[1]
        found = (packages.glob(f"{folder}/lib*omp*") for folder in ("torch/lib", "torch.libs"))
        for runtime in itertools.chain(*found):
            ctypes.CDLL(str(runtime), ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(path))


def is_built() -> bool:
    """Whether `library()` would return at once."""
    compiler = compilers.find()
    if building.prebuilt() is not None or compiler is None:
        return True
    return building.library_file(compiler).exists()


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
    return lack() if compilers.find() is None else "the C++ operations cannot be built"


def lack() -> str:
    """Say what a machine without a compiler lacks."""
    rungs = isa.prebuilt_rungs()
    if not rungs:
        return "no C++ compiler"
    why = f"are for {', '.join(rungs)}, not {isa.chosen()}"
    if isa.chosen() in rungs:
        why = "are compiled from other sources" if building.prebuilt() is None else "do not load"
    return f"no C++ compiler, and this installation's operations {why}"


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
