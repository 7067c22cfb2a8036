"""Rotary angles with Hugging Face's scaling schemes.

The `inv_freq` functions take a `Rope` and return ([D/2] fp32, factor of cosine and sine); one table
lists them by `rope_type`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.errors import ModelLoadError, UnsupportedArchitecture
from kernels.native_recording import computed_once

Frequencies = tuple[Tensor, float]

CHUNK = 1024
"""The number of positions by which the table grows."""


@dataclass(frozen=True, slots=True)
class Rope:
    """The parameters of a rotary embedding."""

    dim: int
    """Elements of a head that are rotated, the first ones."""
    theta: float
    """The base of the wavelengths."""
    max_positions: int
    """The length that the model can use."""
    scaling: dict[str, Any] | None = None
    """Hugging Face's dictionary; None for no scaling."""
    axes: tuple[int, ...] = ()
    """For each frequency, the axis of the positions that it turns by, where rows of pictures have
    several; empty for models whose rows never do."""


class Rotation(NamedTuple):
    """The rotation of the query and key heads of one step's rows, for all layers."""

    positions: Tensor
    """[T] int64."""
    cos_sin: Tensor
    """[P, R] fp32 with P above all positions: a position's R/2 cosines, then its R/2 sines."""


class RotaryTable:
    """Cosines and sines by position; on a CPU they are computed when a position is first needed.

    The table grows by whole chunks, so the bits of a position never depend on what shares a step.
    """

    def __init__(self, rope: Rope, device: torch.device) -> None:
        self._rope = rope
        scheme = rope_type(rope)
        self._dynamic = scheme == "dynamic"
        inv_freq, self._factor = _SCHEMES[scheme](rope)
        self._inv_freq = inv_freq.to(device)
        self._cos_sin = torch.empty(0, 2 * len(inv_freq), device=device)
        self._axis_of = torch.tensor(2 * rope.axes, device=device)
        """The axis of each cosine and sine."""
        self._outgrown: list[Tensor] = []
        """Smaller tables that recorded steps of shorter contexts still refer to."""
        self._num_positions = 0
        if device.type != "cpu":
            # Another thread records steps on a GPU and must not make the table grow.
            self._reach(rope.max_positions)

    def at(self, positions: Tensor, longest: int) -> Rotation:
        """Return the rotation of rows at [T] positions, or at [A, T] along A axes. All are below
        `longest`, which the host must know.

        The table keeps its place in memory unless `longest` is above all earlier values.
        """
        self._reach(longest)
        if positions.ndim == 1:
            return Rotation(positions, self._cos_sin)
        columns = torch.arange(len(self._axis_of), device=positions.device)
        rows = torch.arange(positions.shape[1], device=positions.device)
        turns = self._cos_sin[positions[self._axis_of].T, columns]
        return Rotation(rows, turns.contiguous())

    def _reach(self, num_positions: int) -> None:
        while self._num_positions < num_positions:
            self._append_chunk()

    @torch.inference_mode()
    @computed_once()
    def _append_chunk(self) -> None:
        start, end = self._num_positions, self._num_positions + CHUNK
        if end > len(self._cos_sin):
            larger = self._cos_sin.new_empty(max(2 * start, end), self._cos_sin.shape[1])
            larger[:start] = self._cos_sin
            self._outgrown.append(self._cos_sin)
            self._cos_sin = larger
        at = torch.arange(start, end, dtype=torch.float32, device=self._inv_freq.device)[:, None]
        angles = at * (self._inv_freq_at(at) if self._dynamic else self._inv_freq)
        self._cos_sin[start:end] = torch.cat((angles.cos(), angles.sin()), -1) * self._factor
        self._num_positions = end

    def _inv_freq_at(self, at: Tensor) -> Tensor:
        """Compute dynamic NTK's frequencies: a position past the trained length stretches the base
        as if the text ended there. transformers does this while it decodes. Unlike its prefill,
        this does not depend on how a prompt is cut into chunks, so cached keys stay valid."""
        rope, dim = self._rope, self._rope.dim
        trained = rope.max_positions
        factor = _scaling(rope, "factor")
        stretch = factor * (at + 1).clamp(min=trained) / trained - (factor - 1)
        base = rope.theta * stretch ** (dim / (dim - 2))
        return 1.0 / base ** _exponents(dim).to(at.device)


def rope_type(rope: Rope) -> str:
    """Return the scaling scheme's name.

    Raises:
        UnsupportedArchitecture: the scheme is unknown.
    """
    scaling = rope.scaling or {}
    name = str(scaling.get("rope_type") or scaling.get("type") or "default")
    if name not in _SCHEMES:
        raise UnsupportedArchitecture(
            f"rope_type {name!r} is not supported; it must be one of {', '.join(_SCHEMES)}"
        )
    return name


def _exponents(dim: int) -> Tensor:
    return torch.arange(0, dim, 2, dtype=torch.float32) / dim


def _default(rope: Rope) -> Frequencies:
    """Su et al. 2021, arXiv:2104.09864, equation 15."""
    return 1.0 / rope.theta ** _exponents(rope.dim), 1.0


def _none(rope: Rope) -> Frequencies:
    """Heads are not rotated: all angles are 0."""
    return torch.zeros(rope.dim // 2), 1.0


def _linear(rope: Rope) -> Frequencies:
    """Position interpolation, Chen et al. 2023, arXiv:2306.15595."""
    inv_freq, factor = _default(rope)
    return inv_freq / _scaling(rope, "factor"), factor


def _llama3(rope: Rope) -> Frequencies:
    """Llama 3.1: long waves are stretched, short ones kept, and those between blended. Llama 4 has
    none between: both factors are 1."""
    inv_freq, _ = _default(rope)
    factor = _scaling(rope, "factor")
    low, high = _scaling(rope, "low_freq_factor"), _scaling(rope, "high_freq_factor")
    trained = _scaling(rope, "original_max_position_embeddings")
    wavelength = 2 * math.pi / inv_freq
    blend = ((trained / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - blend) * inv_freq / factor + blend * inv_freq, 1.0


def _yarn(rope: Rope) -> Frequencies:
    """YaRN, Peng et al. 2023, arXiv:2309.00071, section 3.2, with the temperature of 3.4."""
    scaling, dim = rope.scaling or {}, rope.dim
    trained = _scaling(rope, "original_max_position_embeddings")
    factor = scaling.get("factor") or rope.max_positions / trained

    def dimension_of(rotations: float) -> float:
        """Return the dimension that turns this often within the trained length."""
        turns = trained / (rotations * 2 * math.pi)
        return dim * math.log(turns) / (2 * math.log(rope.theta))

    first = dimension_of(scaling.get("beta_fast") or 32)
    last = dimension_of(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    width = max(last - first, 0.001)
    stretched = ((torch.arange(dim // 2, dtype=torch.float32) - first) / width).clamp(0.0, 1.0)
    inv_freq, _ = _default(rope)
    return inv_freq / factor * stretched + inv_freq * (1 - stretched), _yarn_factor(scaling, factor)


def _yarn_factor(scaling: dict[str, Any], factor: float) -> float:
    """Return the attention temperature, which is folded into cosine and sine."""
    given = scaling.get("attention_factor")
    if given is not None:
        return float(given)

    all_dims = scaling.get("mscale_all_dim")
    if scaling.get("mscale") and all_dims:
        return yarn_magnitude(factor, scaling["mscale"]) / yarn_magnitude(factor, all_dims)
    return yarn_magnitude(factor, 1.0)


def yarn_magnitude(factor: float, weight: float) -> float:
    """Return how much larger vectors become where texts are `factor` times as long."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _longrope(rope: Rope) -> Frequencies:
    """LongRoPE, Ding et al. 2024, arXiv:2402.13753: a divisor for each frequency, in one list for
    models of the first training length and another for longer ones. transformers chooses the list
    by the length of each text, which makes cached keys useless when a text grows beyond it."""
    is_longer = rope.max_positions > _scaling(rope, "original_max_position_embeddings")
    name = "long_factor" if is_longer else "short_factor"
    divisors = (rope.scaling or {}).get(name) or ()
    if len(divisors) != rope.dim // 2:
        raise ModelLoadError(
            f"rope_scaling has {len(divisors)} numbers in {name}; it must have {rope.dim // 2}, "
            f"one per frequency"
        )
    inv_freq, _ = _default(rope)
    return inv_freq / torch.tensor(divisors), _scaling(rope, "attention_factor")


def _proportional(rope: Rope) -> Frequencies:
    """Gemma 4: the first frequencies of a whole rotation; the other pairs do not turn."""
    inv_freq, factor = _linear(rope)
    inv_freq[int(_scaling(rope, "rotated") * rope.dim // 2) :] = 0.0
    return inv_freq, factor


def _scaling(rope: Rope, key: str) -> float:
    value = (rope.scaling or {}).get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ModelLoadError(f"rope_scaling: {key} must be a number")
    return float(value)


_SCHEMES: dict[str, Callable[[Rope], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _default,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "proportional": _proportional,
    "none": _none,
}
