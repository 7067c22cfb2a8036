"""Adapters as PEFT saves them: `adapter_config.json` beside `adapter_model.safetensors`.

Everything that can go wrong is found before any number is used: unsupported settings in the
configuration, names and shapes in the file's header, then numbers that are not finite.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.contract.adapter_orders import AdapterReport
from engine.errors import CorruptFile, ModelLoadError, ModelNotFound, ShapeMismatch
from engine.files.checkpoint_files import read_json
from engine.lora.file_parts import (
    MAX_RANK,
    WEIGHTS,
    Part,
    check_fits,
    incomplete,
    read_parts,
    report_of,
)
from engine.lora.peft_config import (
    CONFIG,
    by_pattern,
    check_copies,
    check_supported,
    listed,
    shortened,
    stated_scale,
)
from engine.models.wrapped_names import unwrapped
from engine.quantization.plan import PICTURE_ENCODER
from engine.weights.safetensors import file_headers, read_tensors
from kernels import copy_matrices

PICKLED = "adapter_model.bin"

_PREFIX = "base_model.model."
_MAGNITUDE = "lora_magnitude_vector"
_LINEAR, _TABLE = ("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")
_BASE = "base_layer"
"""The part name of the base model's own embedding or output layer, which PEFT saves beside an
update."""
_COPY = "weight"
"""The part name of a whole module, one of `modules_to_save`."""
_LATENT_LAYER = "kv_b_proj"
"""The layer of `engine.models.layers.latent_attention` that takes no adapters."""

Shapes = Mapping[str, tuple[int, int]]
"""Outputs and inputs of a model's linear layers, by the checkpoint's names."""


@dataclass(frozen=True, slots=True)
class ModelShapes:
    """The layers that an adapter may change, by the checkpoint's names."""

    linear: Shapes
    tables: Shapes = field(default_factory=dict)
    """Sizes of embeddings: the size of a row, and the number of rows."""
    copies: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shapes of weights that an adapter may replace."""

    def sides(self, name: str) -> tuple[str, str] | None:
        """The tensors of an update, or None if the layer cannot be updated."""
        if name in self.linear:
            return _LINEAR
        return _TABLE if name in self.tables else None

    def sizes(self, name: str) -> tuple[int, int]:
        """Outputs and inputs of a layer that can be updated."""
        return self.linear[name] if name in self.linear else self.tables[name]


class Need(NamedTuple):
    """The memory that an adapter needs for one layer."""

    rank: int
    is_gated: bool


@dataclass(frozen=True, slots=True)
class Gate:
    """DoRA's scaling of a linear layer's whole outputs (`engine.lora.dora`)."""

    less_one: Tensor
    """[out] fp32: the factors, less one."""
    bias: Tensor
    """[out] fp32, the layer's own bias, which is not scaled."""


@dataclass(frozen=True, slots=True)
class Update:
    """The update of one linear layer, whose output gets `scale · (a @ x) @ b`."""

    a: Tensor
    """[r, in], or packed, as b is."""
    b: Tensor
    """[r, out], transposed, as `kernels.lora_gather` takes it."""
    rank: int
    scale: float
    magnitude: Tensor | None = None
    """[out] fp32, DoRA's lengths for the rows of the updated weights."""
    gate: Gate | None = None
    """The gate computed from the magnitude and the model's weights."""

    @property
    def need(self) -> Need:
        """The room that the update needs."""
        return Need(self.rank, self.gate is not None)

    @property
    def num_bytes(self) -> int:
        """The bytes of the update's tensors."""
        gate = () if self.gate is None else (self.gate.less_one, self.gate.bias)
        return sum(tensor.nbytes for tensor in (self.a, self.b, *gate))


@dataclass(frozen=True, slots=True)
class AdapterSize:
    """The room that an adapter needs."""

    needs: Mapping[str, Need]
    """The needs by layer, in arrays that all adapters share."""
    copy_bytes: int = 0
    """The bytes of the adapter's own modules."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter read from a folder for a model, in the model's dtype."""

    updates: Mapping[str, Update]
    """Updates by the checkpoint's name of the layer. For an embedding, A is the looked-up table,
    [r, V]."""
    copies: Mapping[str, Tensor] = field(default_factory=dict)
    """Weights of whole modules that replace the model's."""
    left_out: tuple[str, ...] = ()
    """Layers outside the decoder that the model does not have."""

    @property
    def size(self) -> AdapterSize:
        """The room that the adapter needs."""
        needs = {name: update.need for name, update in self.updates.items()}
        return AdapterSize(needs, sum(copy.nbytes for copy in self.copies.values()))

    @property
    def has_magnitudes(self) -> bool:
        """Whether the adapter has DoRA's magnitudes that are not gates yet."""
        return any(update.magnitude is not None for update in self.updates.values())

    @property
    def num_bytes(self) -> int:
        """The memory that the adapter takes."""
        updates = sum(update.num_bytes for update in self.updates.values())
        return updates + self.size.copy_bytes

    @property
    def report(self) -> AdapterReport:
        """The report for the client that asked for the adapter."""
        ranks = {update.rank for update in self.updates.values()}
        return report_of(len(self.updates) + len(self.copies), ranks, self.left_out)


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """A folder that fits the model, whose numbers have not been read yet."""

    folder: Path
    config: Mapping[str, Any]
    shapes: ModelShapes
    dtype: torch.dtype
    ranks: Mapping[str, int]
    """The rank of each layer that the adapter updates."""
    copies: tuple[str, ...]
    """The whole modules that the adapter replaces."""
    left_out: tuple[str, ...]
    wanted: Mapping[str, tuple[str, str]]
    """The layer and part of each tensor, by its name in the file."""

    @property
    def size(self) -> AdapterSize:
        """The room that the adapter will need."""
        is_gated = bool(self.config.get("use_dora"))
        needs = {name: Need(rank, is_gated) for name, rank in self.ranks.items()}
        whole = (self.shapes.copies[name] for name in self.copies)
        return AdapterSize(
            needs, sum(math.prod(shape) * self._kept_as(len(shape)).itemsize for shape in whole)
        )

    def read(self) -> Adapter:
        """Read the numbers into memory of their own.

        Raises:
            ModelLoadError: some are not finite in the model's dtype. CorruptFile: a file is
                damaged.
        """
        tensors: dict[tuple[str, str], Tensor] = {}
        for piece in read_tensors(self.folder / WEIGHTS, self.wanted):
            places = [self.wanted[key] for key, _ in piece]
            turned = [
                tensor.T if side in (_LINEAR[1], _TABLE[1]) else tensor
                for (_, side), (_, tensor) in zip(places, piece, strict=True)
            ]
            kept = [torch.empty(one.shape, dtype=self._kept_as(one.ndim)) for one in turned]
            # Numbers too large for the model's dtype become infinite in it.
            wrong = copy_matrices(kept, turned)
            if wrong >= 0:
                name, dtype = places[wrong][0], kept[wrong].dtype
                raise ModelLoadError(f"{name} has numbers that are not finite in {dtype}")
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
        """The dtype of a replaced weight: norms and other vectors stay in fp32."""
        return torch.float32 if num_dimensions == 1 else self.dtype


def plan_adapter(folder: Path, shapes: ModelShapes, dtype: torch.dtype) -> AdapterPlan:
    """Examine the configuration and the file header of an adapter for a model with these layers.

    Args:
        dtype: the model's dtype, in which the numbers must be finite.

    Raises:
        ModelLoadError: the adapter cannot be used; the message holds no path. CorruptFile: a file
            is damaged; ShapeMismatch: the adapter was made for another model.
    """
    if not folder.exists():
        raise ModelNotFound(f"there is no folder {folder.name!r}")
    config = read_json(folder / CONFIG)
    check_supported(config)
    if not (folder / WEIGHTS).exists():
        pickle = f" ({PICKLED} can run any code)" if (folder / PICKLED).exists() else ""
        raise ModelLoadError(f"there is no {WEIGHTS}{pickle}; save the adapter as safetensors")
    found = _checked(folder, shapes, has_magnitudes=bool(config.get("use_dora")))
    check_copies(config, found.copies)
    for name, rank in found.ranks.items():
        wanted = by_pattern(config, "rank_pattern", name, config.get("r", 8))
        if wanted != rank:
            raise ShapeMismatch(f"{name} has rank {rank}; {CONFIG} says {shortened(wanted)}")
        stated_scale(config, name, rank)  # raises if there is none
    return AdapterPlan(folder, config, shapes, dtype, *found)


class _Found(NamedTuple):
    """The parts of a file's header that concern a model."""

    ranks: dict[str, int]
    """The rank of each layer that the adapter updates."""
    copies: tuple[str, ...]
    left_out: tuple[str, ...]
    wanted: dict[str, tuple[str, str]]


def _checked(folder: Path, shapes: ModelShapes, *, has_magnitudes: bool) -> _Found:
    known = {*_LINEAR, *_TABLE, _COPY, *([_MAGNITUDE] if has_magnitudes else [])}

    def is_base(key: str) -> bool:
        name, part = _layer_of(key)
        return part == _BASE and shapes.copies.get(name) == headers[key].shape

    def split(key: str) -> tuple[str, str] | None:
        name, part = _layer_of(key)
        return (name, part) if part in known else None

    headers = file_headers(folder / WEIGHTS)
    own = {key: header for key, header in headers.items() if not is_base(key)}
    layers = read_parts(WEIGHTS, own, split)
    copies = [name for name, parts in layers.items() if _COPY in parts]
    found = {name: layers[name] for name in layers if shapes.sides(name) and name not in copies}
    unknown = layers.keys() - {*found, *copies}
    wrong: list[str] = []
    for name in copies:
        if name not in shapes.copies:
            raise ModelLoadError(f"the adapter replaces {shortened(name)}, which is not supported")
        if len(layers[name]) > 1:
            raise CorruptFile(
                f"{WEIGHTS} has both an update and a replacement of {name}; fetch the adapter again"
            )
        shape = layers[name][_COPY].shape
        if shape != shapes.copies[name]:
            wrong.append(_misfit(name, shape, shapes.copies[name]))
    left_out = _checked_unknown(len(found) + len(copies), sorted(unknown))
    ranks: dict[str, int] = {}
    for name, sides in found.items():
        wanted = _wanted_sides(name, shapes, has_magnitudes=has_magnitudes)
        if more := sides.keys() - wanted:
            raise ModelLoadError(f"the adapter has {min(more)} of {name}, which is not supported")
        if lacking := wanted - sides.keys():
            raise incomplete(name, min(lacking))
        try:
            ranks[name] = _checked_rank(name, sides, shapes)
        except ShapeMismatch as error:
            wrong.append(error.message)
    check_fits(wrong)
    used = {
        part.key: (name, side) for name in (*copies, *ranks) for side, part in layers[name].items()
    }
    return _Found(ranks, tuple(copies), left_out, used)


def _wanted_sides(name: str, shapes: ModelShapes, *, has_magnitudes: bool) -> set[str]:
    """The parts that the update of a layer must have.

    Raises:
        ModelLoadError: DoRA of an embedding.
    """
    if name in shapes.linear:
        return {*_LINEAR, *([_MAGNITUDE] if has_magnitudes else [])}
    if has_magnitudes:
        raise ModelLoadError(
            f"the adapter has DoRA for {name}, but DoRA is supported for linear layers only"
        )
    return set(_TABLE)


def _misfit(name: str, shape: tuple[int, ...], own: tuple[int, ...]) -> str:
    return (
        f"{name} has shape {shortened(list(shape))}; the model's has {list(own)}: the adapter was "
        f"made for another model, or another vocabulary"
    )


def _checked_rank(name: str, parts: Mapping[str, Part], shapes: ModelShapes) -> int:
    a, b = (parts[side].shape for side in shapes.sides(name) or _LINEAR)
    outputs, inputs = shapes.sizes(name)
    rank = a[0] if a else 0
    if rank < 1 or a != (rank, inputs) or b != (outputs, rank):
        raise ShapeMismatch(
            f"{name} has lora_A {shortened(list(a))} and lora_B {shortened(list(b))}; the model's "
            f"layer has {inputs} inputs and {outputs} outputs: the adapter was made for another "
            f"model"
        )
    magnitudes = parts[_MAGNITUDE].shape if _MAGNITUDE in parts else (outputs,)
    if magnitudes != (outputs,):
        raise ShapeMismatch(
            f"{name} has {shortened(list(magnitudes))} magnitudes; the model's layer has "
            f"{outputs} outputs: the adapter was made for another model"
        )
    if rank > MAX_RANK:
        raise ModelLoadError(f"{name} has rank {rank}; the limit is {MAX_RANK}")
    return rank


def _checked_unknown(num_found: int, names: Sequence[str]) -> tuple[str, ...]:
    """Return the adapter's layers that the model lacks and need not have.

    Raises:
        ModelLoadError: one of them would belong to the model's decoder, or none of the adapter's
            layers is in the model.
    """
    foreign = [name for name in names if name.startswith("model.layers.")]
    if num_found and foreign and all(name.endswith(f".{_LATENT_LAYER}") for name in foreign):
        raise ModelLoadError(
            f"the adapter changes {listed(foreign)}, and adapters cannot change how a model makes "
            f"keys and values from latents; train one without {_LATENT_LAYER}"
        )
    if foreign or not num_found:
        raise ModelLoadError(
            f"the model lacks {len(names)} of the adapter's linear layers "
            f"({listed(foreign or names)}) and has {num_found}: the adapter was made for another "
            f"model"
        )
    for name in names:
        if name.endswith(("lm_head", "embed_tokens")):
            raise ModelLoadError(f"the adapter changes {name}, which is not supported")
    return tuple(names)


def _layer_of(key: str) -> tuple[str, str]:
    """Split a tensor's key into its layer and its part: a part of the update, or the weight."""
    stated = key.removeprefix(_PREFIX)
    own = unwrapped(stated)  # as in an adapter of a model for pictures and text
    path = stated if own.startswith(PICTURE_ENCODER) else own
    name, _, side = path.removesuffix(".weight").rpartition(".")
    is_part = side.startswith("lora_") or side == _BASE
    if path.endswith(f".{_COPY}") and not is_part:
        return path.removesuffix(f".{_COPY}"), _COPY
    return name, side
