"""Reads ncnn's `.param` files, which are graphs with one layer per line.

A line is `kind name inputs outputs [input…] [output…] [key=value…]`. Above are a magic number and
the numbers of layers and of values between them. A key of -23300 - k has the list that belongs to
k.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.errors import CorruptFile
from engine.files.checkpoint_files import read_bounded

MAGIC = "7767517"
_MAX_BYTES = 4 << 20
_MAX_LAYERS = 16384
_LIST_KEY = -23300

Value = int | float
Values = Mapping[int, Value | tuple[Value, ...]]


@dataclass(frozen=True, slots=True)
class Layer:
    """One operation of a graph."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    values: Values

    def integer(self, key: int, default: int = 0) -> int:
        """The integer of a key.

        Raises:
            CorruptFile: the value is not an integer.
        """
        value = self.values.get(key, default)
        if not isinstance(value, int):
            raise CorruptFile(f"parameter {key} of layer {self.name!r} must be a whole number")
        return value

    def number(self, key: int, default: float = 0.0) -> float:
        """The number of a key.

        Raises:
            CorruptFile: the value is a list, or not finite.
        """
        value = self.values.get(key, default)
        if isinstance(value, tuple) or not math.isfinite(value):
            raise CorruptFile(f"parameter {key} of layer {self.name!r} must be a finite number")
        return float(value)

    def numbers(self, key: int) -> tuple[float, ...]:
        """The list of a key; empty if missing."""
        value = self.values.get(key, ())
        return tuple(map(float, value)) if isinstance(value, tuple) else (float(value),)


def read_param(path: Path) -> list[Layer]:
    """The layers, each after the layers whose outputs it takes.

    Raises:
        CorruptFile: it is not such a file, or its contents are impossible.
        ModelLoadError: it cannot be read.
    """
    try:
        text = read_bounded(path, _MAX_BYTES).decode("ascii")
        lines = [line.split() for line in text.splitlines() if line.strip()]
        if lines[0] != [MAGIC]:
            raise CorruptFile(f"{path.name} is not an ncnn .param file")
        num_layers = int(lines[1][0])
        if not 0 < num_layers == len(lines) - 2 <= _MAX_LAYERS:
            raise CorruptFile(
                f"{path.name} says that it has {num_layers} layers and has {len(lines) - 2}; both "
                f"must be the same, at most {_MAX_LAYERS}"
            )
        layers = [_layer(words) for words in lines[2:]]
    except (ValueError, IndexError, OverflowError) as error:
        raise CorruptFile(
            f"{path.name} is damaged or not an ncnn .param file; fetch it again"
        ) from error
    _check_order(layers, path.name)
    return layers


def _layer(words: list[str]) -> Layer:
    kind, name = words[:2]
    num_inputs, num_outputs = int(words[2]), int(words[3])
    if min(num_inputs, num_outputs) < 0 or len(words) < 4 + num_inputs + num_outputs:
        raise ValueError("blobs")
    names = words[4 : 4 + num_inputs + num_outputs]
    pairs = (word.partition("=") for word in words[4 + len(names) :])
    values = dict(_value(int(key), text) for key, _, text in pairs)
    return Layer(kind, name, tuple(names[:num_inputs]), tuple(names[num_inputs:]), values)


def _value(key: int, text: str) -> tuple[int, Value | tuple[Value, ...]]:
    if key > _LIST_KEY:
        return key, _number(text)
    count, *items = text.split(",")
    if int(count) != len(items):
        raise ValueError("list")
    return _LIST_KEY - key, tuple(map(_number, items))


def _number(text: str) -> Value:
    return float(text) if any(letter in text for letter in ".eEnN") else int(text)


def _check_order(layers: list[Layer], name: str) -> None:
    known: set[str] = set()
    for layer in layers:
        if not known.issuperset(layer.inputs) or not known.isdisjoint(layer.outputs):
            raise CorruptFile(
                f"{name}: layer {layer.name[:80]!r} takes an input that no earlier layer makes"
            )
        known.update(layer.outputs)
