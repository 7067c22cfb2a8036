"""The instruction set that the C++ operations are compiled for, one for the whole process.

`native` uses all features of the processor. A rung is a level of x86-64 or ARM as compilers name
it, with more instructions for products or without: code compiled for a rung runs, with the same
arithmetic, on every processor that has its features. Any lower rung can be chosen, to be tested and
timed. `auto` is the highest rung whose operations came compiled with the installation (a wheel made
by `tools/wheel.py`), or else `native`. This file imports only the standard library.
"""

import argparse
import contextlib
import functools
from collections.abc import Iterator
from enum import Enum, auto
from pathlib import Path

NATIVE = "native"
_V3 = ("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave")
_V4 = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_V4_VNNI = (*_V3, *_V4, "avx512_vnni")
_V4_BF16 = (*_V4_VNNI, "avx512_bf16")
RUNGS = {
    "x86-64-v3": _V3,
    "x86-64-v3-vnni": (*_V3, "avx_vnni"),
    "x86-64-v4": (*_V3, *_V4),
    "x86-64-v4-vnni": _V4_VNNI,
    "x86-64-v4-bf16": _V4_BF16,
    "x86-64-v4-amx": (*_V4_BF16, "amx_tile", "amx_bf16"),
    "armv8-a": ("asimd",),
}
"""The features that each rung needs, by name and lowest first, in the words of /proc/cpuinfo."""
PREBUILT = Path(__file__).parent / "prebuilt"
"""The folder of compiled operations in an installed wheel, `RUNG.DIGEST.so`."""
_BEYOND_LEVEL = {
    "avx_vnni": "-mavxvnni",
    "avx512_vnni": "-mavx512vnni",
    "avx512_bf16": "-mavx512bf16",
    "amx_tile": "-mamx-tile",
    "amx_bf16": "-mamx-bf16",
}
"""Compiler options for features that no level includes."""


def choose(name: str, *, matrix_unit: bool = True) -> None:
    """Use operations compiled for a rung from now on. Call this before any operation runs.

    Args:
        name: `auto`, `native` or a rung.
        matrix_unit: whether a matrix unit may be used; if not, the highest rung below is chosen.

    Raises:
        ValueError: the processor lacks features of the rung.
    """
    global _chosen
    lacks = missing(name)
    if lacks:
        raise ValueError(f"{name} needs {', '.join(lacks)}, which this processor does not have")
    _chosen = best() if name == "auto" else name
    if multiplies_tiles() and not matrix_unit:
        _chosen = "x86-64-v4-bf16"


def best() -> str:
    """Return the highest rung that came compiled and that this processor has; `native` if there is
    none."""
    there = prebuilt_rungs()
    return next((rung for rung in reversed(there) if not missing(rung)), NATIVE)


def prebuilt_rungs() -> list[str]:
    """Return the rungs whose operations came compiled with the installation, lowest first."""
    there = {path.name.partition(".")[0] for path in PREBUILT.glob("*.so")}
    return [rung for rung in RUNGS if rung in there]


@contextlib.contextmanager
def compiling_for(rung: str) -> Iterator[None]:
    """Compile for a rung within this context, which this processor need not have."""
    global _chosen
    before, _chosen = _chosen, rung
    try:
        yield
    finally:
        _chosen = before


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--cpu-isa`, for programs that run operations as a server with this setting does."""
    choices = ("auto", NATIVE, *RUNGS)
    parser.add_argument(
        "--cpu-isa", choices=choices, default=_chosen, help="instructions to compute with"
    )


def chosen() -> str:
    """Return the instruction set of the operations: `native` or a rung's name."""
    return _chosen


def compiler_flags() -> list[str]:
    """Return the compiler's options: a level and the features beyond it."""
    level = "-".join(_chosen.split("-")[:3])
    more = [_BEYOND_LEVEL[one] for one in RUNGS.get(_chosen, ()) if one in _BEYOND_LEVEL]
    return [f"-march={level}", *more]


def multiplies_bf16() -> bool:
    """Whether compiled operations multiply pairs of bf16 numbers; otherwise arithmetic is fp32."""
    return "avx512_bf16" in RUNGS.get(_chosen, features())


def multiplies_tiles() -> bool:
    """Whether the processor multiplies whole tiles of bf16 numbers, in a unit of its own."""
    return "amx_bf16" in RUNGS.get(_chosen, features())


class Arithmetic(Enum):
    """How activations meet weights of few bits."""

    FP32 = auto()
    PAIRS = auto()
    """Weights are rounded to bf16 and multiplied in pairs."""
    INT16 = auto()
    """Activations become 16-bit integers."""
    DIGITS = auto()
    """Activations become integers of one byte, and of two where they are large."""


def packed_arithmetic(*, bf16: bool, integers: bool) -> Arithmetic:
    """Return the arithmetic for activations of 16 bits, bf16 or else fp16, and codes that are
    integers or other numbers."""
    has = RUNGS.get(_chosen, features())
    is_intel = cpuinfo().get("vendor_id") == "GenuineIntel"
    if bf16 and (multiplies_tiles() or (multiplies_bf16() and not is_intel and not integers)):
        return Arithmetic.PAIRS
    if bf16 and integers and {"avx512_vnni", "avx_vnni"} & set(has):
        return Arithmetic.DIGITS
    if integers and ("avx512_vnni" in has or ("avx2" in has and "avx512f" not in has)):
        return Arithmetic.INT16
    return Arithmetic.FP32


def missing(name: str) -> list[str]:
    """Return the features of a rung that this processor lacks; empty for `native` and `auto`."""
    return [feature for feature in RUNGS.get(name, ()) if feature not in features()]


@functools.cache
def features() -> frozenset[str]:
    """Return the processor's features in the words of /proc/cpuinfo; empty if there is no such
    file."""
    info = cpuinfo()
    return frozenset(info.get("flags", info.get("Features", "")).split())


@functools.cache
def cpuinfo() -> dict[str, str]:
    """Read /proc/cpuinfo, for the first core where cores differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in reversed(lines))
    return {name.strip(): value.strip() for name, _, value in pairs}


_chosen = best()
