"""Adapters as PEFT saves them: `adapter_config.json` beside `adapter_model.safetensors`.

Everything that could go wrong is found before any number is used: what the configuration asks for
and we do not have, names and shapes from the file's header, then that the numbers are finite.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.adapter_orders import AdapterReport
from engine.checkpoint_files import read_json
from engine.errors import CorruptFile, ModelLoadError, ShapeMismatch
from engine.weights.safetensors import file_headers, iter_file_tensors

CONFIG, WEIGHTS, PICKLED = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
MAX_RANK = 256
"""That `kernels.lora_gather` takes."""
MAX_NAMED = 3
"""Layers that a message lists."""
MAX_SHOWN = 100
"""Characters of a name."""

_PREFIX = "base_model.model."
_MAGNITUDE = "lora_magnitude_vector"
_UNSUPPORTED = {
    "trainable_token_indices": "token embeddings (trainable_token_indices)",
    "lora_bias": "biases of its own (lora_bias)",
    "layer_replication": "layer_replication",
    "target_parameters": "target_parameters",
    "alora_invocation_tokens": "activation by tokens (aLoRA)",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
"""Keys of the configuration that make it something else than B·A beside linear layers."""
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin that subtract the first adapter from the base, which ours is not then."""
_LARGEST = torch.finfo(torch.float32).max
_DTYPES = ("F32", "F16", "BF16")
_PLAIN_PATTERN = re.compile(r"\^?(?:[\w-]|\\?\.)+")

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
    def report(self) -> AdapterReport:
        """For whoever has asked for it."""
        return AdapterReport(
            num_layers=len(self.updates),
            ranks=tuple(sorted({update.rank for update in self.updates.values()})),
            num_left_out=len(self.left_out),
            left_out=tuple(map(_short, self.left_out[:MAX_NAMED])),
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
    _check_supported(config)
    if not (folder / WEIGHTS).exists():
        pickled = f", and {PICKLED} may run anything" if (folder / PICKLED).exists() else ""
        raise ModelLoadError(f"there is no {WEIGHTS}{pickled}; save the adapter as safetensors")
    has_magnitudes = bool(config.get("use_dora"))
    ranks, left_out = _checked_ranks(folder, shapes, has_magnitudes)
    for name, rank in ranks.items():
        wanted = _by_pattern(config, "rank_pattern", name, config.get("r", 8))
        if wanted != rank:
            raise ShapeMismatch(f"{name} has rank {rank}; {CONFIG} says {_short(wanted)}")
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
            _scale(config, name, rank),
            tensors.get((name, _MAGNITUDE)),
        )
        for name, rank in ranks.items()
    }
    return Adapter(updates, left_out)


def _check_supported(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise ModelLoadError(
            f"{CONFIG} says peft_type {_short(config.get('peft_type'))}; LORA it can be"
        )
    for key, what in _UNSUPPORTED.items():
        if config.get(key):
            raise ModelLoadError(f"it has {what}, which is not supported here")
    if modules := config.get("modules_to_save"):
        named = _listed(modules) if isinstance(modules, list) else _short(modules)
        raise ModelLoadError(
            f"it brings whole modules of its own (modules_to_save: {named}), which is not "
            f"supported here: all adapters share the model's; train without, or merge it"
        )
    if config.get("bias", "none") != "none":
        raise ModelLoadError("it has biases, which are not supported here; train with bias none")
    begun = str(config.get("init_lora_weights")).lower()
    if begun.startswith(_CHANGES_BASE):
        raise ModelLoadError(
            f"it was begun with {_short(begun)}, which changes the base model; convert it to a "
            f"plain LoRA when you save it (path_initial_model_for_weight_conversion)"
        )


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
            raise ModelLoadError(f"it has {_short(key)}, which is not supported here")
        if header.type not in _DTYPES:
            raise ModelLoadError(
                f"{_short(key)} holds {header.type}; {', '.join(_DTYPES)} it can be"
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
            f"{name} has lora_A {_short(list(a))} and lora_B {_short(list(b))}; the model's layer "
            f"has {inputs} inputs and {outputs} outputs: it was made for another model"
        )
    if sides.get(_MAGNITUDE, (outputs,)) != (outputs,):
        raise ShapeMismatch(
            f"{name} has {_short(list(sides[_MAGNITUDE]))} magnitudes; the model's layer has "
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
            f"the model has no linear layers {_listed(foreign or names)}, of {len(names)} that it "
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


def _scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    """`alpha / r`, or `alpha / sqrt(r)` with rsLoRA (Kalajdzievski 2023, arXiv:2312.03732)."""
    alpha = _by_pattern(config, "alpha_pattern", name, config.get("lora_alpha", 8))
    is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not is_number or not abs(alpha) <= _LARGEST:
        raise CorruptFile(f"{CONFIG} has no usable lora_alpha for {name}")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(config: Mapping[str, Any], key: str, name: str, default: Any) -> Any:
    """The value of the first pattern that a layer's name ends with, whole words.

    PEFT takes regular expressions. A stranger's could keep us busy for ever, and configurations in
    use hold names, which these are.
    """
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        raise CorruptFile(f"{CONFIG} has a {key} that is no object")
    for pattern, value in patterns.items():
        if not _PLAIN_PATTERN.fullmatch(pattern):
            raise ModelLoadError(
                f"{CONFIG} has a {key} with a regular expression; write layers' names"
            )
        wanted = pattern.removeprefix("^").replace("\\.", ".")
        if name == wanted or (not pattern.startswith("^") and name.endswith(f".{wanted}")):
            return value
    return default


def _listed(names: Sequence[object]) -> str:
    more = len(names) - MAX_NAMED
    return ", ".join(map(_short, names[:MAX_NAMED])) + (f" and {more} more" if more > 0 else "")


def _short(stated: object) -> str:
    """What a stranger's file says, for a message."""
    return str(stated)[:MAX_SHOWN]
