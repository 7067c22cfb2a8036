"""Adapters as PEFT saves them: `adapter_config.json` beside `adapter_model.safetensors`.

Everything that could go wrong is found before any number is used: what the configuration asks for
and we do not have, names and shapes from the file's header, then that the numbers are finite.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.adapter_orders import AdapterReport
from engine.checkpoint_files import read_json
from engine.errors import CorruptFile, ModelLoadError, ModelNotFound, ShapeMismatch
from engine.lora.peft_config import (
    CONFIG,
    MAX_NAMED,
    by_pattern,
    check_copies,
    check_supported,
    listed,
    shortened,
    stated_scale,
)
from engine.weights.safetensors import file_headers, read_tensors
from kernels import copy_matrices

WEIGHTS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
MAX_RANK = 256
"""That `kernels.lora_gather` takes."""
DTYPES = ("F32", "F16", "BF16")

_PREFIX = "base_model.model."
_MAGNITUDE = "lora_magnitude_vector"
_LINEAR, _TABLE = ("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")
_BASE = "base_layer"
"""The base model's own embedding or output layer, which PEFT saves beside an update of it."""
_COPY = "weight"
"""Of a whole module: one of `modules_to_save`."""

Shapes = Mapping[str, tuple[int, int]]
"""Outputs and inputs of a model's linear layers, by the checkpoint's names."""


@dataclass(frozen=True, slots=True)
class ModelShapes:
    """What an adapter may change, by the checkpoint's names."""

    linear: Shapes
    tables: Shapes = field(default_factory=dict)
    """Of embeddings: the size of a row, and how many there are."""
    copies: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Of weights that it may bring whole."""

    def sides(self, name: str) -> tuple[str, str] | None:
        """The tensors of an update. None: it cannot be updated."""
        if name in self.linear:
            return _LINEAR
        return _TABLE if name in self.tables else None

    def sizes(self, name: str) -> tuple[int, int]:
        """Outputs and inputs of what can be updated."""
        return self.linear[name] if name in self.linear else self.tables[name]


class Need(NamedTuple):
    """What an adapter's part of a layer needs room for."""

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
    """[r, in]; or packed, as b is."""
    b: Tensor
    """[r, out]: turned, as `kernels.lora_gather` takes it."""
    rank: int
    scale: float
    magnitude: Tensor | None = None
    """[out] fp32, of DoRA: how long the rows of the updated weights shall be."""
    gate: Gate | None = None
    """What that comes to with the model's weights."""

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
class AdapterSize:
    """What an adapter needs room for."""

    needs: Mapping[str, Need]
    """By layer: in arrays that all adapters share."""
    copy_bytes: int = 0
    """Its own."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """What a folder holds for a model, in its type."""

    updates: Mapping[str, Update]
    """By the checkpoint's name of the layer. Of an embedding, A is what is looked up, [r, V]."""
    copies: Mapping[str, Tensor] = field(default_factory=dict)
    """Weights of whole modules in place of the model's."""
    left_out: tuple[str, ...] = ()
    """Layers that the model has not, beside its decoder's."""

    @property
    def size(self) -> AdapterSize:
        """Of room."""
        needs = {name: update.need for name, update in self.updates.items()}
        return AdapterSize(needs, sum(copy.nbytes for copy in self.copies.values()))

    @property
    def has_magnitudes(self) -> bool:
        """Whether it is DoRA's, without gates yet."""
        return any(update.magnitude is not None for update in self.updates.values())

    @property
    def num_bytes(self) -> int:
        """Of memory."""
        updates = sum(update.num_bytes for update in self.updates.values())
        return updates + self.size.copy_bytes

    @property
    def report(self) -> AdapterReport:
        """For whoever has asked for it."""
        return AdapterReport(
            num_layers=len(self.updates) + len(self.copies),
            ranks=tuple(sorted({update.rank for update in self.updates.values()})),
            num_left_out=len(self.left_out),
            left_out=tuple(map(shortened, self.left_out[:MAX_NAMED])),
        )


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """A folder that fits the model, whose numbers have still to be read."""

    folder: Path
    config: Mapping[str, Any]
    shapes: ModelShapes
    dtype: torch.dtype
    ranks: Mapping[str, int]
    """Of each layer that it updates."""
    copies: tuple[str, ...]
    """Whole modules."""
    left_out: tuple[str, ...]
    wanted: Mapping[str, tuple[str, str]]
    """By the names in its file: of which layer a tensor is, and what of it."""

    @property
    def size(self) -> AdapterSize:
        """What it will need room for."""
        is_gated = bool(self.config.get("use_dora"))
        needs = {name: Need(rank, is_gated) for name, rank in self.ranks.items()}
        whole = (self.shapes.copies[name] for name in self.copies)
        return AdapterSize(
            needs, sum(math.prod(shape) * self._kept_as(len(shape)).itemsize for shape in whole)
        )

    def read(self) -> Adapter:
        """Read the numbers, into memory of their own.

        Raises:
            ModelLoadError: some are not finite in the model's type. CorruptFile: a file is damaged.
        """
        tensors: dict[tuple[str, str], Tensor] = {}
        for piece in read_tensors(self.folder / WEIGHTS, self.wanted):
            places = [self.wanted[key] for key, _ in piece]
            turned = [
                tensor.T if side in (_LINEAR[1], _TABLE[1]) else tensor
                for (_, side), (_, tensor) in zip(places, piece, strict=True)
            ]
            kept = [torch.empty(one.shape, dtype=self._kept_as(one.ndim)) for one in turned]
            # What is too large for the model's type is infinite in it.
            wrong = copy_matrices(kept, turned)
            if wrong >= 0:
                name, dtype = places[wrong][0], kept[wrong].dtype
                raise ModelLoadError(f"{name} holds numbers that are not finite in {dtype}")
            tensors |= zip(places, kept, strict=True)
        updates = {name: self._update(name, rank, tensors) for name, rank in self.ranks.items()}
        copies = {name: tensors[name, _COPY] for name in self.copies}
        return Adapter(updates, copies, self.left_out)

    def _update(self, name: str, rank: int, tensors: Mapping[tuple[str, str], Tensor]) -> Update:
        a, b = self.shapes.sides(name) or _LINEAR
        return Update(
            tensors[name, a],
            tensors[name, b],
            rank,
            stated_scale(self.config, name, rank),
            tensors.get((name, _MAGNITUDE)),
        )

    def _kept_as(self, num_dimensions: int) -> torch.dtype:
        """Of one number each: magnitudes, norms."""
        return torch.float32 if num_dimensions == 1 else self.dtype


def plan_adapter(folder: Path, shapes: ModelShapes, dtype: torch.dtype) -> AdapterPlan:
    """Look at an adapter that was made for a model with these layers: at its configuration and at
    the header of its file.

    Args:
        dtype: of the model, in which the numbers must be finite.

    Raises:
        ModelLoadError: what is wrong, in words that hold no path. CorruptFile: a file is damaged;
            ShapeMismatch: it was made for another model.
    """
    if not folder.exists():
        raise ModelNotFound(f"there is no folder {folder.name!r}")
    config = read_json(folder / CONFIG)
    check_supported(config)
    if not (folder / WEIGHTS).exists():
        pickled = f", and {PICKLED} may run anything" if (folder / PICKLED).exists() else ""
        raise ModelLoadError(f"there is no {WEIGHTS}{pickled}; save the adapter as safetensors")
    found = _checked(folder, shapes, has_magnitudes=bool(config.get("use_dora")))
    check_copies(config, found.copies)
    for name, rank in found.ranks.items():
        wanted = by_pattern(config, "rank_pattern", name, config.get("r", 8))
        if wanted != rank:
            raise ShapeMismatch(f"{name} has rank {rank}; {CONFIG} says {shortened(wanted)}")
        stated_scale(config, name, rank)  # refused here, if there is none
    return AdapterPlan(folder, config, shapes, dtype, *found)


class _Found(NamedTuple):
    """What the header of a file has for a model."""

    ranks: dict[str, int]
    """Of each layer that it updates."""
    copies: tuple[str, ...]
    left_out: tuple[str, ...]
    wanted: dict[str, tuple[str, str]]


def _checked(folder: Path, shapes: ModelShapes, *, has_magnitudes: bool) -> _Found:
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    copies: list[str] = []
    unknown: list[str] = []
    wrong: list[str] = []
    known = {*_LINEAR, *_TABLE, _COPY, *([_MAGNITUDE] if has_magnitudes else [])}
    parts: dict[str, tuple[str, str]] = {}
    for key, header in file_headers(folder / WEIGHTS).items():
        name, side = parts[key] = _layer_of(key)
        if side == _BASE and shapes.copies.get(name) == header.shape:
            continue
        if side not in known:
            raise ModelLoadError(f"it has {shortened(key)}, which is not supported here")
        if header.type not in DTYPES:
            raise ModelLoadError(
                f"{shortened(key)} holds {header.type}; {', '.join(DTYPES)} it can be"
            )
        if side == _COPY:
            if name not in shapes.copies:
                raise ModelLoadError(f"it brings {shortened(name)} whole, which is not supported")
            if name in copies:
                raise CorruptFile(f"{WEIGHTS} has {name} twice; fetch it again")
            copies.append(name)
            if header.shape != shapes.copies[name]:
                wrong.append(_misfit(name, header.shape, shapes.copies[name]))
        elif shapes.sides(name) is not None:
            sides = found.setdefault(name, {})
            if side in sides:
                raise CorruptFile(f"{WEIGHTS} has {side} of {name} twice; fetch it again")
            sides[side] = header.shape
        else:
            unknown.append(name)
    left_out = _checked_unknown({*found, *copies}, unknown)
    ranks: dict[str, int] = {}
    for name, sides in found.items():
        if name in copies:
            raise CorruptFile(f"{WEIGHTS} both updates {name} and brings it whole")
        wanted = _wanted_sides(name, shapes, has_magnitudes=has_magnitudes)
        if more := sides.keys() - wanted:
            raise ModelLoadError(f"it has {min(more)} of {name}, which is not supported here")
        if lacking := wanted - sides.keys():
            raise CorruptFile(f"{name} has no {min(lacking)}; fetch the adapter again")
        try:
            ranks[name] = _checked_rank(name, sides, shapes)
        except ShapeMismatch as error:
            wrong.append(error.message)
    if wrong:
        others = f"; {len(wrong) - 1} more of its layers do not fit" if len(wrong) > 1 else ""
        raise ShapeMismatch(wrong[0] + others)
    used = {
        key: (name, side)
        for key, (name, side) in parts.items()
        if side != _BASE and name in (copies if side == _COPY else ranks)
    }
    return _Found(ranks, tuple(copies), left_out, used)


def _wanted_sides(name: str, shapes: ModelShapes, *, has_magnitudes: bool) -> set[str]:
    """
    Raises:
        ModelLoadError: DoRA of an embedding.
    """
    if name in shapes.linear:
        return {*_LINEAR, *([_MAGNITUDE] if has_magnitudes else [])}
    if has_magnitudes:
        raise ModelLoadError(f"it has DoRA of {name}, which is supported for linear layers only")
    return set(_TABLE)


def _misfit(name: str, shape: tuple[int, ...], own: tuple[int, ...]) -> str:
    return (
        f"{name} has {shortened(list(shape))} weights; the model's has {list(own)}: it was made "
        f"for another model, or another vocabulary"
    )


def _checked_rank(name: str, sides: Mapping[str, tuple[int, ...]], shapes: ModelShapes) -> int:
    a, b = (sides[side] for side in shapes.sides(name) or _LINEAR)
    outputs, inputs = shapes.sizes(name)
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


def _checked_unknown(found: Collection[str], unknown: list[str]) -> tuple[str, ...]:
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
    """A tensor's layer, and what it is of it: a part of its update, or its weight."""
    path = key.removeprefix(_PREFIX)
    name, _, side = path.removesuffix(".weight").rpartition(".")
    is_part = side.startswith("lora_") or side == _BASE
    if path.endswith(f".{_COPY}") and not is_part:
        return path.removesuffix(f".{_COPY}"), _COPY
    return name, side
