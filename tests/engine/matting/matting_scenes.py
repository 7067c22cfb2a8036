"""Pictures whose alpha and colours are known, since they were composed here."""

import random
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from PIL import Image

from engine.matting.arrays import Bools, Bytes, Floats
from engine.matting.trimap import Trimap

DATA = Path(__file__).parents[2] / "data"

T = TypeVar("T")


@dataclass(frozen=True)
class Scene:
    """`image` is `alpha` times `front` over `back`, rounded."""

    image: Bytes
    alpha: Floats
    front: Floats
    back: Floats
    trimap: Trimap


def scene(height: int = 120, width: int = 160, band: int = 5) -> Scene:
    """A warm disc with hairs, before a cool background; both with colours that change slowly. Drawn
    from the `random` module."""
    front = field(height, width, warm=True)
    back = field(height, width, warm=False)
    alpha = np.zeros((height, width), np.float32)
    middle, radius = (width // 2, height // 2), min(height, width) // 4
    cv2.circle(alpha, middle, radius, 1.0, -1, cv2.LINE_AA)
    for _ in range(24):
        angle = random.uniform(0, 2 * np.pi)
        way = np.array([np.cos(angle), np.sin(angle)])
        ends = [tuple(np.rint(middle + way * radius * far).astype(int)) for far in (0.9, 1.25)]
        cv2.line(alpha, *ends, 0.7, 1)  # type: ignore[call-overload]
    alpha = cv2.GaussianBlur(alpha, (0, 0), 1.0)
    mixed = alpha[..., None] * front + (1 - alpha[..., None]) * back
    image = np.rint(255 * mixed).astype(np.uint8)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * band + 1, 2 * band + 1))
    sure = cv2.erode((alpha > 0.995).astype(np.uint8), disc) > 0
    none = cv2.erode((alpha < 0.005).astype(np.uint8), disc) > 0
    return Scene(image, alpha, front, back, Trimap(sure, ~sure & ~none))


def field(height: int, width: int, *, warm: bool) -> Floats:
    """Colours that change slowly, around orange or around blue."""
    base = np.array([0.85, 0.55, 0.25] if warm else [0.15, 0.3, 0.6], np.float32)
    corners = np.array(
        [[base + [random.uniform(-0.1, 0.1) for _ in range(3)] for _ in range(3)] for _ in range(3)]
    )
    return np.asarray(
        cv2.resize(corners.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    ).clip(0, 1)


def finished(work: Generator[Any, None, T]) -> T:
    """What comes of work with pauses."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def load(name: str, mode: str = "RGB") -> Bytes:
    """A picture of tests/data."""
    return np.asarray(Image.open(DATA / name).convert(mode))


def lemur() -> tuple[Bytes, Trimap, Floats]:
    """PyMatting's scene at half its size: the photograph, its trimap and its alpha."""
    trimap = Trimap.of(load("lemur_trimap.png", "L"))
    return load("lemur.png"), trimap, load("lemur_alpha.png", "L") / np.float32(255)


def rms(difference: Any, where: Bools | None = None) -> float:
    """Of the numbers there."""
    values = difference if where is None else difference[where]
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
