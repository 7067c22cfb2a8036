"""How closely an enlarged picture keeps to its input: what may be asked for, and what is found."""

from dataclasses import dataclass

from engine.contract.pixels import Pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Faithfulness:
    """How closely an enlarged picture keeps to its input, and what to report about that."""

    fidelity: float = 0.0
    """The share of its contradictions to the input that is removed, 0 to 1."""
    face_guard: float = 0.0
    """How far faces are drawn back to those of the plainly enlarged input, 0 to 1."""
    heat_map: bool = False
    """Whether to make a picture that shows where detail was added."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Consistency:
    """How well an enlarged picture, reduced again, agrees with its input, over the input's pixels
    and channels."""

    psnr_db: float
    """The peak signal-to-noise ratio in decibels: higher is closer."""
    rms_error: float
    """The root of the mean squared error, in levels of 255."""
    share_changed: float
    """The share of the input's pixels that differ visibly in some channel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """The findings about an enlarged picture."""

    consistency: Consistency
    num_faces: int | None = None
    """The number of guarded faces; None if faces were not guarded."""
    heat_map: Pixels | None = None
    """The heat map in RGB, of the input's size."""


@dataclass(frozen=True, slots=True)
class Examined:
    """An enlarged picture and the findings about it."""

    pixels: Pixels
    examination: Examination
