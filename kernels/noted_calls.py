"""Noted calls of C functions in a row, made in one call of their own.

Python runs only once for all of them; it would take a microsecond or two after each call, and more
whenever another thread needs Python.
"""

import ctypes
import functools
import platform
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from kernels import native
from kernels.native import NotedCall

MOST_WHOLE, MOST_REAL = 24, 4
"""The most pointers and integers, and floats, that a function may take. As in `calls.cpp`."""
MACHINES = ("x86_64", "aarch64")
"""Machines on which all functions can be called in the same way."""


class _Call(ctypes.Structure):
    _fields_ = [
        ("function", ctypes.c_int64),
        ("whole", ctypes.c_int64 * MOST_WHOLE),
        ("real", ctypes.c_float * MOST_REAL),
    ]


def joined(calls: Iterable[Callable[[], object]]) -> list[Callable[[], object]]:
    """Return fewer calls that do the same in the same order."""
    found: list[Callable[[], object]] = []
    for can_be, run in groupby(calls, _can_be_joined):
        alike = list(run)
        found += (
            [_in_one([call for call in alike if isinstance(call, NotedCall)])] if can_be else alike
        )
    return found


def _can_be_joined(call: Callable[[], object]) -> bool:
    if not isinstance(call, NotedCall) or platform.machine() not in MACHINES:
        return False
    num_real = call.signature.count("f")
    return num_real <= MOST_REAL and len(call.signature) - num_real <= MOST_WHOLE


def _in_one(calls: Sequence[NotedCall]) -> Callable[[], object]:
    table = (_Call * len(calls))(*map(_entry, calls))
    arrays = [one for call in calls for one in call.arguments if isinstance(one, ctypes.Array)]
    return functools.partial(_make_calls, table, arrays)


def _make_calls(table: "ctypes.Array[_Call]", arrays: object) -> None:
    """Make the calls of a table.

    Args:
        arrays: the memory that the calls' pointers refer to, kept alive as long as the calls.
    """
    _function()(table, len(table))


def _entry(call: NotedCall) -> _Call:
    whole: list[int] = []
    real: list[float] = []
    for letter, argument in zip(call.signature, call.arguments, strict=True):
        if letter == "f":
            real.append(argument)
        elif letter == "i":
            whole.append(int(argument))
        else:
            whole.append(_address(argument))
    entry = _Call(function=ctypes.cast(call.function, ctypes.c_void_p).value)
    entry.whole[: len(whole)] = whole
    entry.real[: len(real)] = real
    return entry


def _address(pointer: "int | ctypes.Array[ctypes.c_int64] | None") -> int:
    if isinstance(pointer, ctypes.Array):
        return ctypes.addressof(pointer)
    return pointer or 0


@functools.cache
def _function() -> native.Function:
    return native.function("tandem_make_calls", "pi")
