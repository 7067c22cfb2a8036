"""ncnn's `.param` files: a graph of layers, a line each.

`kind name inputs outputs [input…] [output…] [key=value…]`, below a magic number and the numbers of
layers and of what passes between them. A key of -23300 - k holds the list that belongs to k.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.checkpoint_files import read_bounded
from engine.errors import CorruptFile

MAGIC = "7767517"
_MAX_BYTES = 4 << 20
_MAX_LAYERS = 16384
_LIST_KEY = -23300

Value = int | float
Values = Mapping[int, Value | tuple[Value, ...]]


@dataclass(frozen=True, slots=True)
class Layer:
    """One operation."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    values: Values

    def integer(self, key: int, default: int = 0) -> int:
        """
        Raises:
            CorruptFile: it is no integer.
        """
        value = self.values.get(key, default)
        if not isinstance(value, int):
            raise CorruptFile(f"layer {self.name!r} has no whole number {key}")
        return value

    def number(self, key: int, default: float = 0.0) -> float:
        """
        Raises:
            CorruptFile: it is a list, or not finite.
        """
        value = self.values.get(key, default)
        if isinstance(value, tuple) or not math.isfinite(value):
            raise CorruptFile(f"layer {self.name!r} has no usable number {key}")
        return float(value)

    def numbers(self, key: int) -> tuple[float, ...]:
        """A list, empty where there is none."""
        value = self.values.get(key, ())
        return tuple(map(float, value)) if isinstance(value, tuple) else (float(value),)


def read_param(path: Path) -> list[Layer]:
    """The layers, each after those that it takes from.

    Raises:
        CorruptFile: it is no such file, or what it says cannot be.
        ModelLoadError: it cannot be read.
    """
    try:
        text = read_bounded(path, _MAX_BYTES).decode("ascii")
        lines = [line.split() for line in text.splitlines() if line.strip()]
        if lines[0] != [MAGIC]:
            raise CorruptFile(f"{path.name} does not begin like an ncnn .param file")
        num_layers = int(lines[1][0])
        if not 0 < num_layers == len(lines) - 2 <= _MAX_LAYERS:
            raise CorruptFile(
                f"{path.name} says that it has {num_layers} layers and has {len(lines) - 2}; at "
                f"most {_MAX_LAYERS} are read"
            )
        layers = [_layer(words) for words in lines[2:]]
    except (ValueError, IndexError, OverflowError) as error:
        raise CorruptFile(f"{path.name} is no readable ncnn .param file") from error
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
            raise CorruptFile(f"{name}: layer {layer.name[:80]!r} takes what no layer before made")
        known.update(layer.outputs)
