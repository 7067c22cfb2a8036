"""Changes bytes and JSON documents at random; the same generator makes the same changes."""

import copy
import json
import struct
from random import Random
from typing import Any

_WORDS = (0, 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63, 2**64 - 1)
_BYTES = (0, 1, 9, 0x20, 0x7F, 0x80, 0xFF)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 0.5, -0.0, 1e308, float("nan"), float("inf"), float("-inf")),
    *(2**31, 2**32, 2**53 + 1, 2**63, 2**64, 10**40, -(2**63), 1e-320),
    *(
        "",
        " ",
        "0",
        "x",
        "\0",
        "é\u202e🙂",
        "\ud800",
        "a" * 5000,
        "../../etc/passwd",
        "{{ 1 / 0 }}",
    ),
    *([], {}, [[]], [None], [0] * 300, {"": None}, {"type": "object"}, [[[[[[[[[[[]]]]]]]]]]]),
)
"""What stands where something else was expected."""


def changed_bytes(data: bytes, rng: Random) -> bytes:
    """One to four changes, most of them near the beginning or the end, where structure is."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = _place(len(data), rng)
        style = rng.choice(("cut", "bit", "byte", "word", "insert", "delete", "copy"))
        data = damaged(data, style, at, rng) if data else rng.randbytes(8)
    return data


def _place(size: int, rng: Random) -> int:
    distance = min(size - 1, int(2 ** rng.uniform(0, 24)))
    return max(0, distance if rng.random() < 0.8 else size - 1 - distance)


def damaged(data: bytes, style: str, at: int, rng: Random) -> bytes:
    """Bytes with one change at a place. A word is eight bytes of it, a cut may be anywhere."""
    num_bytes = rng.choice((1, 2, 8, 100))
    if style == "cut":
        return data[: rng.randrange(len(data))]
    if style == "bit":
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if style == "byte":
        return data[:at] + bytes([rng.choice(_BYTES)]) + data[at + 1 :]
    if style == "word":
        return data[:at] + struct.pack("<Q", rng.choice(_WORDS)) + data[at + 8 :]
    if style == "insert":
        return data[:at] + rng.randbytes(num_bytes) + data[at:]
    if style == "delete":
        return data[:at] + data[at + num_bytes :]
    return data[:at] + data[at : at + num_bytes] + data[at:]


def changed_json(document: Any, rng: Random, others: list[Any] | None = None) -> Any:
    """A copy with one to four values replaced, renamed, left out, wrapped or repeated.

    Args:
        others: documents of which a part may stand in.
    """
    document = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 2, 4))):
        holders = [place for place in _holders(document) if place]
        if not holders:
            return rng.choice(_VALUES)
        _change(rng.choice(holders), rng, others or [document])
    return document


def _holders(value: Any) -> list[Any]:
    """All lists and objects in a document."""
    found, new = [], [value]
    while new:
        one = new.pop()
        if isinstance(one, list | dict):
            found.append(one)
            new.extend(one.values() if isinstance(one, dict) else one)
    return found


def _change(holder: Any, rng: Random, others: list[Any]) -> None:
    key = rng.choice([*holder] if isinstance(holder, dict) else range(len(holder)))
    style = rng.choice(("value", "value", "value", "other", "drop", "wrap", "number", "repeat"))
    value = holder[key]
    if style == "drop":
        del holder[key]
    elif style == "wrap":
        holder[key] = rng.choice(([value], {"value": value}, json.dumps(str(value))))
    elif style == "other":
        donor = rng.choice(_holders(rng.choice(others)) or [{}])
        holder[key] = copy.deepcopy(donor)
    elif style == "number" and isinstance(value, int | float):
        holder[key] = rng.choice((-value, value + 1, value * 1000, value / 3))
    elif style == "repeat" and isinstance(value, list | str):
        holder[key] = (value * rng.choice((2, 50)))[:10_000]
    elif isinstance(holder, dict) and rng.random() < 0.2:
        holder[str(rng.choice(_VALUES))[:100]] = holder.pop(key)
    else:
        holder[key] = copy.deepcopy(rng.choice(_VALUES))
