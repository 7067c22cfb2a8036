"""Damages GGUF files again and again."""

import random
import struct
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from engine.errors import ModelLoadError


def num_refused(
    ends: Mapping[Path, int], load: Callable[[], object], num_trials: int, styles: Sequence[str]
) -> int:
    """Load files one of which is damaged, and count the refusals. A flipped bit may still make a
    valid file; nothing but our own errors may come of it, in a bounded time and memory.

    Args:
        ends: for each file, where what comes before its tensors ends.
    """
    whole = {path: path.read_bytes() for path in ends}
    found = 0
    tracemalloc.start()
    for _ in range(num_trials):
        path, style = random.choice([*ends]), random.choice(styles)
        at = random.randrange(ends[path] - 8)
        path.write_bytes(damaged(whole[path], style, at))
        started_s = time.thread_time()
        try:
            load()
        except ModelLoadError:
            found += 1
        except BaseException as error:
            pytest.fail(f"{error!r} after a changed {style} at {at} of {path.name}")
        assert time.thread_time() - started_s < 5, f"slow: a changed {style} at {at} of {path.name}"
        path.write_bytes(whole[path])
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 64 << 20
    return found


def damaged(data: bytes, style: str, at: int) -> bytes:
    """Cut a file off anywhere, or change a bit, a byte or a word at a place."""
    if style == "cut":
        return data[: random.randrange(len(data))]
    changed = bytearray(data)
    if style == "bit":
        changed[at] ^= 1 << random.randrange(8)
    elif style == "byte":
        changed[at] = random.choice([0, 1, 0x7F, 0x80, 0xFF])
    else:
        word = random.choice([0, 2**31, 2**32, 2**62, 2**64 - 1])
        changed[at : at + 8] = struct.pack("<Q", word)
    return bytes(changed)
