"""Checks ONNX files as the work of strangers: what may be loaded, and which pictures it takes.

An ONNX file is a protobuf message that may name further files for its tensors. onnxruntime would
read any of them, so each is checked first to lie beside the model. The message is walked field by
field, with the numbers of `onnx.proto3`; none of it is run.
"""

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.errors import CorruptFile, ModelLoadError, UnsupportedArchitecture
from engine.files.checkpoint_files import check_regular, open_regular, read_optional_json

MAX_FILE_BYTES = 2 << 30
"""The largest possible protobuf message; the largest in use (BiRefNet) have 0.9 GB."""
MAX_DEPTH = 64
"""The most levels of graphs within nodes within graphs."""
MAX_FIELDS = 4_000_000
"""The most fields of nested messages, without the numbers of tensors. BiRefNet has 100,000.
onnxruntime has no such limit and takes up to 900 bytes for a field of two bytes."""
MAX_SIDE = 2048
PREPROCESSOR = "preprocessor_config.json"

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_ISNET_NAMES = ("isnet", "is-net", "is_net", "rmbg-1", "rmbg1")

_TENSORS = {
    # Message → (fields that hold tensors, fields that hold messages which may hold tensors).
    "model": ({}, {7: "graph", 20: "training", 25: "function"}),
    "training": ({}, {1: "graph", 2: "graph"}),
    "graph": ({5: "tensor", 15: "sparse"}, {1: "node"}),
    "function": ({}, {7: "node", 11: "attribute"}),
    "node": ({}, {5: "attribute"}),
    "attribute": (
        {5: "tensor", 10: "tensor", 22: "sparse", 23: "sparse"},
        {6: "graph", 11: "graph"},
    ),
    "sparse": ({1: "tensor", 2: "tensor"}, {}),
}
_GRAPH = 7
_VARINT, _WITH_LENGTH = 0, 2
_FIXED_BYTES = {1: 8, 5: 4}
_EXTERNAL_DATA = 13
"""The field of a tensor with pairs of texts, of which `location` is a file's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFacts:
    """The facts about a network's input.

    Attributes:
        architecture: the network's class: `U2Net`, `ISNet` or `BiRefNet`.
        side: the side of its square picture; 0 until it is known.
        mean, std: the normalisation of colours, which are from 0 to 1.
        scales_by_brightest: whether colours are divided by the picture's largest number, not by
            255.
    """

    architecture: str
    side: int = 0
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    scales_by_brightest: bool = False
    input: str = ""
    output: str = ""

    def with_shapes(self, input: str, shape: Sequence[Any], output: str) -> "NetworkFacts":
        """The facts completed by the loaded network's input shape, [1, 3, side, side].

        Raises:
            UnsupportedArchitecture: the network does not take square pictures in colour.
        """
        batch, channels, height, width = shape
        # Dimensions that are names and not numbers can have any size.
        sides = {side for side in (height, width) if isinstance(side, int)}
        side = sides.pop() if sides else self.side or 1024
        if sides or (batch not in (1, None) and isinstance(batch, int)):
            raise UnsupportedArchitecture(
                "the network must take one square picture at a time; use U²-Net, IS-Net or BiRefNet"
            )
        if (isinstance(channels, int) and channels != 3) or not 16 <= side <= MAX_SIDE:
            raise UnsupportedArchitecture(
                f"the network takes pictures of {channels} x {side} x {side}; it must take 3 "
                f"colours and 16 to {MAX_SIDE} pixels a side"
            )
        found = replace(self, side=side, input=input, output=output)
        if side == 320 and self.architecture == "BiRefNet":
            found = replace(found, architecture="U2Net", scales_by_brightest=True)
        return found


def read_facts(path: Path) -> NetworkFacts:
    """Check a network's file and the files that it names, and find the facts about its input: from
    its `preprocessor_config.json`, or else from its name and later its size.

    Raises:
        CorruptFile: it is not an ONNX file, is truncated, or is nested too deeply.
        ModelLoadError: it names files elsewhere, or exceeds a limit.
    """
    check_regular(path, MAX_FILE_BYTES)
    with open_regular(path) as file:
        # Mapped and not read, as onnxruntime will read the gigabyte anyway.
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise CorruptFile(f"{path.name!r} is empty; fetch it again") from error
    # Not closed, as an error's traceback may still hold parts of it.
    locations = _Walk(path.name).external_files(memoryview(mapped))
    for location in locations:
        _check_beside(path, location)
    folders = [path.parent, *([path.parent.parent] if path.parent.name == "onnx" else [])]
    for folder in folders:
        keys = read_optional_json(folder / PREPROCESSOR)
        if keys:
            return _described(keys, str(path).lower())
    if any(part in path.name.lower() for part in _ISNET_NAMES):
        return NetworkFacts(
            architecture="ISNet", mean=(0.5,) * 3, std=(1.0,) * 3, scales_by_brightest=True
        )
    if "u2net" in path.name.lower():
        return NetworkFacts(architecture="U2Net", scales_by_brightest=True)
    return NetworkFacts(architecture="BiRefNet")


def _described(keys: dict[str, Any], name: str) -> NetworkFacts:
    """The facts in a transformers image processor's configuration."""
    size = keys.get("size")
    side = size.get("height", size.get("shortest_edge")) if isinstance(size, dict) else size
    mean, std = keys.get("image_mean", IMAGENET_MEAN), keys.get("image_std", IMAGENET_STD)
    is_triple = all(
        isinstance(values, list | tuple)
        and len(values) == 3
        and all(isinstance(v, int | float) and -1e3 < v < 1e3 for v in values)
        for values in (mean, std)
    )
    if not is_triple or min(std) <= 0 or not (side is None or isinstance(side, int)):
        raise CorruptFile(
            f"{PREPROCESSOR} has no usable size, image_mean or image_std; fetch it again"
        )
    is_isnet = any(part in name for part in _ISNET_NAMES)
    return NetworkFacts(
        architecture="ISNet" if is_isnet else "BiRefNet", side=side or 0, mean=mean, std=std
    )


def _check_beside(path: Path, location: str) -> None:
    """Check that a location names a regular file in the model's folder.

    Raises:
        ModelLoadError: it does not.
    """
    file = path.parent / location
    is_name = location not in ("", ".", "..") and "/" not in location and "\\" not in location
    if not is_name or "\0" in location or file.is_symlink() or not file.is_file():
        raise ModelLoadError(
            f"{path.name!r} keeps weights in {location[:80]!r}; only regular files beside it are "
            f"read, not links; export it as one file"
        )
    check_regular(file)


class _Walk:
    """A walk through one message."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._fields_left = MAX_FIELDS

    def external_files(self, data: memoryview) -> set[str]:
        """The names of the files that its tensors refer to.

        Raises:
            CorruptFile: it is not an ONNX model, or has more fields than any model in use.
        """
        found: set[str] = set()
        to_do: list[tuple[str, memoryview, int]] = [("model", data, 0)]
        has_graph = False
        try:
            while to_do:
                kind, message, depth = to_do.pop()
                if depth > MAX_DEPTH:
                    raise CorruptFile(
                        f"{self._name!r} nests graphs more than {MAX_DEPTH} levels deep"
                    )
                tensors, others = _TENSORS[kind]
                for number, value in self._fields(message):
                    has_graph |= kind == "model" and number == _GRAPH
                    if tensors.get(number) == "tensor":
                        found |= self._locations(value)
                    elif inner := tensors.get(number) or others.get(number):
                        to_do.append((inner, value, depth + 1))
        except (IndexError, ValueError) as error:
            raise CorruptFile(
                f"{self._name!r} is truncated or not an ONNX file; fetch it again"
            ) from error
        if not has_graph:
            raise CorruptFile(f"{self._name!r} is not an ONNX file: it holds no graph")
        return found

    def _locations(self, tensor: memoryview) -> set[str]:
        found: set[str] = set()
        for number, value in self._fields(tensor):
            if number == _EXTERNAL_DATA:
                pair = {key: bytes(text).decode("utf-8") for key, text in self._fields(value)}
                if pair.get(1) == "location":
                    found.add(pair.get(2, ""))
        return found

    def _fields(self, message: memoryview) -> Iterator[tuple[int, memoryview]]:
        """The (number, content) of fields that have a length; other fields are skipped.

        Raises:
            IndexError, ValueError: it is not a message.
        """
        at, end = 0, len(message)
        while at < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise CorruptFile(f"{self._name!r} has more than {MAX_FIELDS} fields")
            key, at = _varint(message, at)
            wire_type = key & 7
            if wire_type == _VARINT:
                _, at = _varint(message, at)
            elif wire_type in _FIXED_BYTES:
                at += _FIXED_BYTES[wire_type]
            elif wire_type == _WITH_LENGTH:
                size, at = _varint(message, at)
                if at + size > end:
                    raise ValueError("a field ends behind its message")
                yield key >> 3, message[at : at + size]
                at += size
            else:
                raise ValueError("a field has no known type")
        if at > end:
            raise ValueError("a field ends behind its message")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number and the position after it."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
