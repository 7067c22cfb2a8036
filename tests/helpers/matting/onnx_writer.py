"""Writes ONNX files in the protobuf format by hand: small networks, and broken ones."""

import struct
from collections.abc import Sequence

FLOAT, INT64 = 1, 7


def varint(value: int) -> bytes:
    data = b""
    while value >= 0x80:
        data += bytes([value & 0x7F | 0x80])
        value >>= 7
    return data + bytes([value])


def field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor(name: str, shape: Sequence[int], numbers: Sequence[float]) -> bytes:
    dims = b"".join(field(1, size) for size in shape)
    raw = struct.pack(f"<{len(numbers)}f", *numbers)
    return dims + field(2, FLOAT) + field(8, name) + field(9, raw)


def external_tensor(name: str, shape: Sequence[int], location: str) -> bytes:
    dims = b"".join(field(1, size) for size in shape)
    entry = field(1, "location") + field(2, location)
    return dims + field(2, FLOAT) + field(8, name) + field(13, entry) + field(14, 1)


def node(
    kind: str, inputs: Sequence[str], outputs: Sequence[str], *attributes: bytes, domain: str = ""
) -> bytes:
    data = b"".join(field(1, name) for name in inputs)
    data += b"".join(field(2, name) for name in outputs)
    data += field(4, kind) + b"".join(field(5, attribute) for attribute in attributes)
    return data + (field(7, domain) if domain else b"")


def value(name: str, shape: Sequence[int | str], kind: int = FLOAT) -> bytes:
    dims = b"".join(
        field(1, field(1, size) if isinstance(size, int) else field(2, size)) for size in shape
    )
    return field(1, name) + field(2, field(1, field(1, kind) + field(2, dims)))


def model(graph: bytes) -> bytes:
    return field(1, 8) + field(7, graph) + field(8, field(2, 13))


def brightness_network(
    side: int | str = 64,
    *,
    channels: int = 3,
    kind: int = FLOAT,
    extra: bytes = b"",
    weights: bytes | None = None,
) -> bytes:
    """Make a network that finds bright pixels: the sum of their normalised colours, as logits."""
    stored = weights or tensor("w", [1, channels, 1, 1], [10.0] * channels)
    graph = field(1, node("Conv", ["image", "w"], ["mask"]))
    graph += field(2, "bright") + field(5, stored)
    graph += field(11, value("image", [1, channels, side, side], kind))
    graph += field(12, value("mask", [1, 1, side, side]))
    return model(graph + extra)
