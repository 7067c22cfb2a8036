"""Pictures to compare: photographs, random ones, and small ones of them."""

import random
from pathlib import Path

import numpy as np
from PIL import Image

from engine.fidelity.planes import Bytes, Planes
from engine.fidelity.resampling import Resampling

PHOTOGRAPHS = Path(__file__).parents[2] / "data" / "photographs"


def generator() -> np.random.Generator:
    """Fresh numbers in every run, that the run's seed repeats."""
    return np.random.default_rng(random.randrange(1 << 30))


def photograph(name: str = "astronaut") -> Bytes:
    return np.asarray(Image.open(PHOTOGRAPHS / f"{name}.png").convert("RGB"))


def noise(height: int, width: int, channels: int = 3, *, low: int = 0, high: int = 256) -> Bytes:
    return generator().integers(low, high, (height, width, channels), dtype=np.uint8)


def resized(picture: Bytes, height: int, width: int) -> Planes:
    """By the operators under test, in one piece."""
    resampling = Resampling.between(picture.shape[:2], (height, width))
    return resampling.band(picture.astype(np.float32), 0, height)


def rounded(planes: Planes) -> Bytes:
    return np.rint(np.clip(planes, 0, 255)).astype(np.uint8)
