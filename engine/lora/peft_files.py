"""Adapters as PEFT saves them: `adapter_config.json` beside `adapter_model.safetensors`.

Everything that could go wrong is found before any number is used: what the configuration asks for
and we do not have, names and shapes from the file's header, then that the numbers are finite.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from engine.adapter_orders import AdapterReport
from engine.checkpoint_files import read_json
from engine.errors import CorruptFile, ModelLoadError, ShapeMismatch
from engine.lora.peft_config import (
    CONFIG,
    MAX_NAMED,
    by_pattern,
    check_supported,
    listed,
    shortened,
    stated_scale,
)
from engine.weights.safetensors import file_headers, iter_file_tensors

WEIGHTS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
MAX_RANK = 256
"""That `kernels.lora_gather` takes."""
DTYPES = ("F32", "F16", "BF16")

_PREFIX = "base_model.model."
_MAGNITUDE = "lora_magnitude_vector"

Shapes = Mapping[str, tuple[int, int]]
"""Outputs and inputs of a model's linear layers, by the checkpoint's names."""


class Need(NamedTuple):
    """What an adapter's part of a linear layer needs room for."""

    rank: int
    is_gated: bool


@dataclass(frozen=True, slots=True)
class Gate:
    """How DoRA scales a linear layer's whole outputs (`engine.lora.dora`)."""

    less_one: Tensor
    """[out] fp32: the factors, less one."""
    bias: Tensor
    """[out] fp32, the layer's own, which is not scaled."""


@dataclass(frozen=True, slots=True)
class Update:
    """Of one linear layer, whose output gets `scale · (a @ x) @ b`."""

    a: Tensor
    """[r, in]."""
    b: Tensor
    """[r, out]: turned, as `kernels.lora_gather` takes it."""
    scale: float
    magnitude: Tensor | None = None
    """[out] fp32, of DoRA: how long the rows of the updated weights shall be."""
    gate: Gate | None = None
    """What that comes to with the model's weights."""

    @property
    def rank(self) -> int:
        return len(self.a)

    @property
    def need(self) -> Need:
        """Of room."""
        return Need(self.rank, self.gate is not None)

    @property
    def num_bytes(self) -> int:
        """Of its tensors."""
        gate = () if self.gate is None else (self.gate.less_one, self.gate.bias)
        return sum(tensor.nbytes for tensor in (self.a, self.b, *gate))


@dataclass(frozen=True, slots=True)
class Adapter:
    """What a folder holds for a model, in its type."""

    updates: Mapping[str, Update]
    """By the checkpoint's name of the layer."""
    left_out: tuple[str, ...] = ()
    """Layers that the model has not, beside its decoder's."""

    @property
    def needs(self) -> dict[str, Need]:
        """By layer."""
        return {name: update.need for name, update in self.updates.items()}

    @property
    def num_bytes(self) -> int:
        """Of memory."""
        return sum(update.num_bytes for update in self.updates.values())

    @property
    def report(self) -> AdapterReport:
        """For whoever has asked for it."""
        return AdapterReport(
            num_layers=len(self.updates),
            ranks=tuple(sorted({update.rank for update in self.updates.values()})),
            num_left_out=len(self.left_out),
            left_out=tuple(map(shortened, self.left_out[:MAX_NAMED])),
        )


def read_adapter(folder: Path, shapes: Shapes, dtype: torch.dtype) -> Adapter:
    """Read an adapter that was made for a model with these layers. Nothing of it stays in the
    file's memory, so that whoever installs it waits for no disk.

    Args:
        dtype: of the model, in which the numbers must be finite.

    Raises:
        ModelLoadError: what is wrong, in words that hold no path. CorruptFile: a file is damaged;
            ShapeMismatch: it was made for another model.
    """
    config = read_json(folder / CONFIG)
    check_supported(config)
    if not (folder / WEIGHTS).exists():
        pickled = f", and {PICKLED} may run anything" if (folder / PICKLED).exists() else ""
        raise ModelLoadError(f"there is no {WEIGHTS}{pickled}; save the adapter as safetensors")
    has_magnitudes = bool(config.get("use_dora"))
    ranks, left_out = _checked_ranks(folder, shapes, has_magnitudes)
    for name, rank in ranks.items():
        wanted = by_pattern(config, "rank_pattern", name, config.get("r", 8))
        if wanted != rank:
            raise ShapeMismatch(f"{name} has rank {rank}; {CONFIG} says {shortened(wanted)}")
    tensors = {}
    for key, tensor in iter_file_tensors(folder / WEIGHTS):
        name, side = _layer_of(key)
        if name not in ranks:
            continue
        turned = tensor.T if side == "lora_B" else tensor
        kept_as = torch.float32 if side == _MAGNITUDE else dtype
        kept = torch.empty(turned.shape, dtype=kept_as).copy_(turned)
        # What is too large for the model's type is infinite in it.
        if not kept.isfinite().all():
            raise ModelLoadError(f"{name} holds numbers that are not finite in {kept_as}")
        tensors[name, side] = kept
    updates = {
        name: Update(
            tensors[name, "lora_A"],
            tensors[name, "lora_B"],
            stated_scale(config, name, rank),
            tensors.get((name, _MAGNITUDE)),
        )
        for name, rank in ranks.items()
    }
    return Adapter(updates, left_out)


def _checked_ranks(
    folder: Path, shapes: Shapes, has_magnitudes: bool
) -> tuple[dict[str, int], tuple[str, ...]]:
    """The rank of each layer that the adapter has, by the header of its file, and the layers that
    are left out."""
    wanted = {"lora_A", "lora_B", *([_MAGNITUDE] if has_magnitudes else [])}
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    unknown: list[str] = []
    for key, header in file_headers(folder / WEIGHTS).items():
        name, side = _layer_of(key)
        if side not in wanted:
            raise ModelLoadError(f"it has {shortened(key)}, which is not supported here")
        if header.type not in DTYPES:
            raise ModelLoadError(
                f"{shortened(key)} holds {header.type}; {', '.join(DTYPES)} it can be"
            )
        if name in shapes:
            sides = found.setdefault(name, {})
            if side in sides:
                raise CorruptFile(f"{WEIGHTS} has {side} of {name} twice; fetch it again")
            sides[side] = header.shape
        else:
            unknown.append(name)
    left_out = _checked_unknown(found, unknown)
    ranks: dict[str, int] = {}
    wrong: list[str] = []
    for name, sides in found.items():
        try:
            if lacking := wanted - sides.keys():
                raise CorruptFile(f"{name} has no {min(lacking)}; fetch the adapter again")
            ranks[name] = _checked_rank(name, sides, shapes[name])
        except ShapeMismatch as error:
            wrong.append(error.message)
    if wrong:
        others = f"; {len(wrong) - 1} more of its layers do not fit" if len(wrong) > 1 else ""
        raise ShapeMismatch(wrong[0] + others)
    return ranks, left_out


def _checked_rank(name: str, sides: Mapping[str, tuple[int, ...]], shape: tuple[int, int]) -> int:
    a, b = sides["lora_A"], sides["lora_B"]
    outputs, inputs = shape
    rank = a[0] if a else 0
    if rank < 1 or a != (rank, inputs) or b != (outputs, rank):
        raise ShapeMismatch(
            f"{name} has lora_A {shortened(list(a))} and lora_B {shortened(list(b))}; the model's "
            f"layer has {inputs} inputs and {outputs} outputs: it was made for another model"
        )
    if sides.get(_MAGNITUDE, (outputs,)) != (outputs,):
        raise ShapeMismatch(
            f"{name} has {shortened(list(sides[_MAGNITUDE]))} magnitudes; the model's layer has "
            f"{outputs} outputs: it was made for another model"
        )
    if rank > MAX_RANK:
        raise ModelLoadError(f"{name} has rank {rank}; the limit is {MAX_RANK}")
    return rank


def _checked_unknown(found: Mapping[str, object], unknown: list[str]) -> tuple[str, ...]:
    """Layers that the model has not, and that it need not have.

    Raises:
        ModelLoadError: a layer that could only be one of the model's, or none is.
    """
    names = tuple(sorted(set(unknown)))
    foreign = [name for name in names if name.startswith("model.layers.")]
    if foreign or not found:
        raise ModelLoadError(
            f"the model has no linear layers {listed(foreign or names)}, of {len(names)} that it "
            f"lacks; it has {len(found)} of the adapter's: it was made for another model"
        )
    for name in names:
        if name.endswith(("lm_head", "embed_tokens")):
            raise ModelLoadError(f"it changes {name}, which is not supported here")
    return names


def _layer_of(key: str) -> tuple[str, str]:
    """A tensor's layer, and what it is of it: `lora_A`, `lora_B`, magnitudes or something else."""
    name, _, side = key.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
    return name, side
