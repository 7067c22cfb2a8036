"""The file of an image adapter: examined and checked by its header, then read.

It may be a trainer's single file (kohya, LyCORIS, diffusers of any age), a folder as diffusers
saves it, or PEFT's folder of a denoiser or a text encoder with its configuration.
"""

import json
import math
from collections.abc import Mapping, Set
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.contract.adapter_orders import AdapterReport
from engine.errors import CorruptFile, ModelLoadError, ShapeMismatch
from engine.files.checkpoint_files import read_optional_json
from engine.lora.file_parts import WEIGHTS, Part, Shape, check_fits, incomplete, report_of
from engine.lora.images.changes import Change, Layer
from engine.lora.images.contents import MAX_HEADER_BYTES, find_file, read_contents
from engine.lora.images.form import Form, misfit
from engine.lora.images.forms import FORMS
from engine.lora.images.gated_change import Lengths
from engine.lora.images.layers import Place
from engine.lora.images.names import Target
from engine.lora.peft_config import (
    CONFIG,
    by_pattern,
    check_no_copies,
    check_supported,
    listed,
    shortened,
    stated_scale,
)
from engine.weights.safetensors import read_file_metadata, read_tensors

_ALPHA, _LENGTHS = "alpha", "lengths"
_METADATA = "lora_adapter_metadata"
"""diffusers' key in a file's header that holds PEFT's configuration by component."""


@dataclass(frozen=True, slots=True)
class _Module:
    """The part of a file for one layer of the model, or for several that the file holds as one."""

    name: str
    """The name in the file."""
    target: Target
    layers: tuple[Layer, ...]
    form: Form
    keys: Mapping[str, str]
    """The tensors by part, with those of alpha and of DoRA's magnitudes."""
    rank: int | None
    num_weights: int

    @property
    def whole(self) -> Layer:
        return _joined(self.layers)


@dataclass(frozen=True, slots=True)
class Plan:
    """A file that fits the model and can be passed to `read_changes`."""

    file: Path
    modules: tuple[_Module, ...]
    config: Mapping[str, Any]
    """PEFT's configuration of all modules, or of each component by diffusers' names of its keys."""
    left_out: tuple[str, ...]

    @property
    def num_weights(self) -> int:
        return sum(module.num_weights for module in self.modules)

    @property
    def report(self) -> AdapterReport:
        """The report for the client that asked for the adapter."""
        ranks = {module.rank for module in self.modules if module.rank is not None}
        num_layers = len({place for module in self.modules for place in module.target})
        return report_of(num_layers, ranks, self.left_out)


def plan_adapter(place: Path, names: Mapping[str, Target], layers: Mapping[Place, Layer]) -> Plan:
    """Examine an adapter's header.

    Args:
        place: a file, or a folder with one.
        names: the layers by the names that files use.

    Raises:
        ModelLoadError: the adapter cannot be used; the message holds no path. CorruptFile: the file
            is damaged; ShapeMismatch: the adapter was made for another model.
    """
    file = find_file(place)
    config = read_optional_json(file.parent / CONFIG) if file.name == WEIGHTS else {}
    if config:
        check_supported(config, [form.peft_type for form in FORMS])
        check_no_copies(config)
    else:
        config = _metadata(file)
    modules: list[_Module] = []
    left_out: list[str] = []
    wrong: list[str] = []
    taken: dict[Place, str] = {}
    for name, found in read_contents(file).items():
        target = names.get(_module_name(name))
        if target is None:
            left_out.append(name)
            continue
        _check_free(name, target, taken)
        own = tuple(layers[place] for place in target)
        form = _form_of(name, found.parts.keys())
        keys = {part: one.key for part, one in found.parts.items()}
        shapes = {part: one.shape for part, one in found.parts.items()}
        try:
            rank = form.rank(shortened(name), shapes, _joined(own))
        except ShapeMismatch as error:
            wrong.append(error.message)
            continue
        count = _num_weights(form, shapes, own)
        if found.alpha is not None:
            keys[_ALPHA] = found.alpha
        if found.lengths is not None:
            keys[_LENGTHS] = _checked_lengths(name, found.lengths, _joined(own))
            count += 4 * _joined(own).out_features  # factors and biases, in fp32
        elif config.get("use_dora"):
            raise CorruptFile(
                f"{shortened(name)} has no lora_magnitude_vector, which DoRA (use_dora) needs"
            )
        modules.append(_Module(name, target, own, form, keys, rank, count))
    check_fits(wrong)
    if not modules:
        some = f" ({listed(left_out)})" if left_out else ""
        raise ModelLoadError(
            f"none of the adapter's {len(left_out)} layers exists in the model{some}: the adapter "
            f"was made for another model"
        )
    return Plan(file, tuple(modules), config, tuple(sorted(left_out)))


def read_changes(
    plan: Plan, dtype: torch.dtype, device: torch.device
) -> dict[Place, Change | Lengths]:
    """Read the numbers into memory of their own.

    Args:
        dtype: the model's dtype, in which the numbers must be finite.

    Raises:
        ModelLoadError: some are not finite. CorruptFile: the file is damaged.
    """
    owners = {key: (one, part) for one in plan.modules for part, key in one.keys.items()}
    tensors: dict[str, dict[str, Tensor]] = {one.name: {} for one in plan.modules}
    for key, tensor in chain.from_iterable(read_tensors(plan.file, owners.keys())):
        module, part = owners[key]
        tensors[module.name][part] = tensor.float()
    changes: dict[Place, Change | Lengths] = {}
    for module in plan.modules:
        parts = tensors.pop(module.name)
        alpha, lengths = parts.pop(_ALPHA, None), parts.pop(_LENGTHS, None)
        scale = _scale(module, None if alpha is None else alpha.item(), plan.config)
        change = module.form.change(parts, module.whole, scale)
        first = 0
        for place, layer in zip(module.target, module.layers, strict=True):
            alone = len(module.target) == 1
            own = change if alone else change.part(first, layer.out_features)
            placed = _placed(module.name, own, dtype, device)
            if lengths is None:
                changes[place] = placed
            else:
                own_lengths = lengths.flatten()[first : first + layer.out_features]
                changes[place] = _with_lengths(module.name, layer, placed, own_lengths, device)
            first += layer.out_features
    return changes


def _module_name(name: str) -> str:
    """Undo old diffusers' naming, which puts adapters of attention into its processors."""
    return name.replace(".processor.", ".")


def _form_of(name: str, parts: Set[str]) -> Form:
    for form in FORMS:
        if parts <= form.parts:
            lacking = form.lacks(parts)
            if lacking is not None:
                raise incomplete(shortened(name), lacking)
            return form
    raise CorruptFile(
        f"{shortened(name)} has weights of two adapter types; fetch the adapter again"
    )


def _check_free(name: str, target: Target, taken: dict[Place, str]) -> None:
    for place in target:
        if place in taken:
            raise CorruptFile(
                f"{shortened(name)} and {shortened(taken[place])} name the same layer; fetch the "
                f"adapter again"
            )
        taken[place] = name


def _joined(layers: tuple[Layer, ...]) -> Layer:
    """Combine layers into one layer with all their outputs."""
    if len(layers) == 1:
        return layers[0]
    return Layer(sum(layer.out_features for layer in layers), layers[0].in_features)


def _num_weights(form: Form, shapes: Mapping[str, Shape], layers: tuple[Layer, ...]) -> int:
    whole = _joined(layers)
    if len(layers) > 1 and not form.splits:
        return whole.out_features * whole.in_features
    return form.num_weights(shapes, whole)


def _metadata(file: Path) -> dict[str, Any]:
    text = read_file_metadata(file, max_header_bytes=MAX_HEADER_BYTES).get(_METADATA)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise CorruptFile(f"{file.name}: {_METADATA} must be JSON") from error
    if not isinstance(value, dict):
        raise CorruptFile(f"{file.name}: {_METADATA} must be a JSON object")
    return value


def _scale(module: _Module, alpha: float | None, config: Mapping[str, Any]) -> float:
    """Alpha divided by the rank, or 1 where a file does not give it, as in diffusers."""
    component, path = module.target[0]
    kind = config.get("peft_type")
    if kind in ("LOHA", "LOKR"):
        return _peft_scale(config, path)
    if module.rank is None:
        return 1.0
    if alpha is not None:
        if not math.isfinite(alpha):
            raise ModelLoadError(
                f"{shortened(module.name)} has an alpha that is not finite; fetch the adapter again"
            )
        return alpha / module.rank
    if kind is None:
        prefix = f"{component}."
        config = {key.removeprefix(prefix): config[key] for key in config if key.startswith(prefix)}
    if "lora_alpha" not in config:
        return 1.0
    return stated_scale(config, path, module.rank)


def _peft_scale(config: Mapping[str, Any], path: str) -> float:
    """Return the scale of PEFT's LoHa and LoKr, whose configuration has other names and always a
    rank."""
    rank = by_pattern(config, "rank_pattern", path, config.get("r"))
    if not isinstance(rank, int) or rank < 1:
        raise CorruptFile(f"{CONFIG}: r for {path} must be a positive integer")
    own = {"lora_alpha": config.get("alpha", 8), "alpha_pattern": config.get("alpha_pattern")}
    return stated_scale(own, path, rank)


def _checked_lengths(name: str, lengths: Part, layer: Layer) -> str:
    """Check the tensor with DoRA's magnitudes and return its key.

    Raises:
        ModelLoadError: it has magnitudes per input. ShapeMismatch: it does not fit.
    """
    key, shape = lengths
    sides = [side for side in shape if side != 1] or [1]
    is_first = shape[:1] == (layer.out_features,)
    of_outputs = is_first or "lora_magnitude_vector" in key
    if sides == [layer.out_features] and of_outputs:
        return key
    if sides == [layer.in_features]:
        raise ModelLoadError(
            f"{shortened(name)} has DoRA magnitudes per input, which are not supported; train with "
            f"magnitudes per output (wd_on_output)"
        )
    raise misfit(name, {_LENGTHS: shape}, layer)


def _with_lengths(
    name: str, layer: Layer, change: Change, lengths: Tensor, device: torch.device
) -> Lengths:
    if not lengths.isfinite().all():
        raise ModelLoadError(f"{shortened(name)} has numbers that are not finite")
    return Lengths(shortened(name), layer, change, lengths.to(device))


def _placed(name: str, change: Change, dtype: torch.dtype, device: torch.device) -> Change:
    placed = change.to(dtype, device)
    if not all(bool(weight.isfinite().all()) for weight in placed.tensors):
        raise ModelLoadError(f"{shortened(name)} has numbers that are not finite in {dtype}")
    return placed
