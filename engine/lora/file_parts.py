"""The parts of an adapter's file by layer, and what every reader of adapters checks."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from engine.contract.adapter_orders import AdapterReport
from engine.errors import CorruptFile, ModelLoadError, ShapeMismatch
from engine.lora.peft_config import MAX_NAMED, shortened
from engine.quantization.format import TensorHeader

WEIGHTS = "adapter_model.safetensors"
MAX_RANK = 256
"""The largest rank that `kernels.lora_gather` takes."""
_DTYPES = ("F32", "F16", "BF16")

Shape = tuple[int, ...]


class Part(NamedTuple):
    """A tensor of a file."""

    key: str
    shape: Shape


def read_parts(
    file: str,
    headers: Mapping[str, TensorHeader],
    split: Callable[[str], tuple[str, str] | None],
) -> dict[str, dict[str, Part]]:
    """Group a file's tensors by their layers' names, and by the parts of a layer.

    Args:
        split: returns the layer's name and the part of a tensor, or None if it knows no such part.

    Raises:
        ModelLoadError: a tensor is unknown or of an unsupported type. CorruptFile: a part is
            repeated.
    """
    layers: dict[str, dict[str, Part]] = {}
    for key, header in headers.items():
        found = split(key)
        if found is None:
            raise ModelLoadError(
                f"the adapter has a tensor {shortened(key)}, which is not supported"
            )
        if header.type not in _DTYPES:
            raise ModelLoadError(
                f"{shortened(key)} has type {header.type}; it must be one of {', '.join(_DTYPES)}"
            )
        name, part = found
        parts = layers.setdefault(name, {})
        if part in parts:
            raise CorruptFile(f"{file} has {part} of {shortened(name)} twice; fetch it again")
        parts[part] = Part(key, header.shape)
    return layers


def incomplete(name: str, part: str) -> CorruptFile:
    """The error for a layer that lacks a part."""
    return CorruptFile(f"{name} has no {part}; fetch the adapter again")


def check_fits(wrong: Sequence[str]) -> None:
    """Check that all layers of an adapter fit the model.

    Raises:
        ShapeMismatch: `wrong` has the reasons why some do not.
    """
    if wrong:
        others = f"; {len(wrong) - 1} more of its layers do not fit" if len(wrong) > 1 else ""
        raise ShapeMismatch(wrong[0] + others)


def report_of(num_layers: int, ranks: set[int], left_out: Sequence[str]) -> AdapterReport:
    """The report for the client that asked for an adapter."""
    return AdapterReport(
        num_layers=num_layers,
        ranks=tuple(sorted(ranks)),
        num_left_out=len(left_out),
        left_out=tuple(map(shortened, left_out[:MAX_NAMED])),
    )
