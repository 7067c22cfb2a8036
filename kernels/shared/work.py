"""The least work of a call in any implementation: the numerator of every rate."""

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kernels.registry import Op


@dataclass(frozen=True, slots=True)
class Work:
    """The data to move and the arithmetic of one call."""

    bytes: int
    """Bytes read from memory and written to it, each number once."""
    flops: int = 0
    """Multiplications and additions; 0 where memory alone limits the op."""


def work_of(op: Op[..., Any], inputs: dict[str, object], outputs: Iterable[Tensor]) -> Work:
    """Return the work by the op's `cases.work(inputs)`, or by default that of reading all inputs
    and writing all outputs."""
    stated = getattr(op.cases, "work", None)
    if stated is not None:
        found: Work = stated(inputs)
        return found
    return Work(num_bytes(inputs) + num_bytes(tuple(outputs)))


def num_bytes(value: object) -> int:
    """Return the bytes of all tensors in a value, however nested."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(value))


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(value):
        yield from _tensors([getattr(value, field.name) for field in dataclasses.fields(value)])


def product_work(inputs: dict[str, Any], num_outputs: int) -> Work:
    """Return the work of rows `x` times a weight [num_outputs, ...], which is read in its stored
    form."""
    x = inputs["x"]
    rows, num_inputs = x.shape
    written = rows * num_outputs * (4 if inputs.get("fp32_out") else x.element_size())
    return Work(num_bytes(inputs) + written, 2 * rows * num_inputs * num_outputs)
