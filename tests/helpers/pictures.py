"""Pictures to compare: photographs, random ones, and small ones of them."""

import random
from pathlib import Path

import numpy as np
from PIL import Image

from engine.contract.examination import Consistency, Examination, Faithfulness
from engine.fidelity.aftercare import Aftercare
from engine.pictures.arrays import Bytes, Floats, array_of
from engine.pictures.resampling import Resampling

PHOTOGRAPHS = Path(__file__).parents[1] / "data" / "photographs"


def generator() -> np.random.Generator:
    """Fresh numbers in every run, that the run's seed repeats."""
    return np.random.default_rng(random.randrange(1 << 30))


def photograph(name: str = "astronaut") -> Bytes:
    return np.asarray(Image.open(PHOTOGRAPHS / f"{name}.png").convert("RGB"))


def noise(height: int, width: int, channels: int = 3, *, low: int = 0, high: int = 256) -> Bytes:
    return generator().integers(low, high, (height, width, channels), dtype=np.uint8)


def resized(picture: Bytes, height: int, width: int) -> Floats:
    """By the operators under test, in one piece."""
    resampling = Resampling.between(picture.shape[:2], (height, width))
    return resampling.band(picture.astype(np.float32), slice(None))


def rounded(planes: Floats) -> Bytes:
    return np.rint(np.clip(planes, 0, 255)).astype(np.uint8)


def measure(result: Bytes, original: Bytes) -> Consistency:
    return _examined(result, original).consistency


def heat_map(result: Bytes, original: Bytes) -> Bytes:
    pixels = _examined(result, original).heat_map
    assert pixels is not None
    return array_of(pixels)


def _examined(result: Bytes, original: Bytes) -> Examination:
    """The findings about a result that comes in one piece."""
    height, width = result.shape[:2]
    care = Aftercare(original, height, width, Faithfulness(heat_map=True))
    care.take(result)
    return care.end()[1]
