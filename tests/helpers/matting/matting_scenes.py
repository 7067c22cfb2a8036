"""Pictures whose alpha and colours are known, since they were composed here."""

import random
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from PIL import Image

from engine.matting.trimap import Trimap
from engine.pictures.arrays import Bools, Bytes, Floats

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
    """Compose a warm disc with hairs before a cool background; both have slowly changing colours.
    Drawn from the `random` module."""
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
    """Make slowly changing colours, around orange or around blue."""
    base = np.array([0.85, 0.55, 0.25] if warm else [0.15, 0.3, 0.6], np.float32)
    corners = np.array(
        [[base + [random.uniform(-0.1, 0.1) for _ in range(3)] for _ in range(3)] for _ in range(3)]
    )
    return np.asarray(
        cv2.resize(corners.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    ).clip(0, 1)


def finished(work: Generator[Any, None, T]) -> T:
    """Run work with pauses to its end and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def load(name: str, mode: str = "RGB") -> Bytes:
    """Load a picture of tests/data."""
    return np.asarray(Image.open(DATA / name).convert(mode))


def lemur() -> tuple[Bytes, Trimap, Floats]:
    """PyMatting's scene at half its size: the photograph, its trimap and its alpha."""
    trimap = Trimap.of(load("lemur_trimap.png", "L"))
    return (
        load("lemur.png"),
        trimap,
        (load("lemur_alpha.png", "L") / np.float32(255)).astype(np.float32),
    )


def rms(difference: Any, where: Bools | None = None) -> float:
    """Compute the root mean square of the numbers where `where` holds."""
    values = difference if where is None else difference[where]
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


@dataclass(frozen=True)
class TwoSubjects:
    """Two subjects, a left one and a right one, before a background out of focus. `alphas` are
    theirs, `places` (x, y) within them."""

    image: Bytes
    alphas: tuple[Floats, Floats]
    places: tuple[tuple[int, int], tuple[int, int]]
    empty: tuple[int, int]
    """A place (x, y) of the background."""


def two_subjects(height: int = 180, width: int = 280) -> TwoSubjects:
    """A blurred photograph, and two bodies with wavy soft borders, grain, and colours that change
    slowly. Drawn from the `random` module."""
    photograph = load("lemur.png")
    top, left = (random.randrange(1 + full // 2) for full in photograph.shape[:2])
    part = photograph[top : top + photograph.shape[0] // 2, left : left + photograph.shape[1] // 2]
    back = cv2.GaussianBlur(cv2.resize(part, (width, height)), (0, 0), 9) / np.float32(255)
    hue = random.random()
    rng = np.random.default_rng(random.randrange(2**32))
    image, alphas, places = back, [], []
    for side in (0, 1):
        x, y = round(width * (0.27 + 0.46 * side)), height // 2
        alpha = _body(height, width, (x, y), 0.24 * height)
        # Of much light and colour, as the blurred forest is dark and dull.
        colour = _colour((hue + random.uniform(0.3, 0.7) * side) % 1.0)
        light = cv2.resize(rng.uniform(0.85, 1.1, (3, 4)).astype(np.float32), (width, height))
        front = colour * light[..., None] + rng.normal(0, 0.012, (height, width, 3))
        image = alpha[..., None] * front + (1 - alpha[..., None]) * image
        alphas.append(alpha)
        places.append((x, y))
    levels = np.rint(255 * image.clip(0, 1)).astype(np.uint8)
    return TwoSubjects(levels, (alphas[0], alphas[1]), (places[0], places[1]), (width // 2, 4))


def _body(height: int, width: int, place: tuple[int, int], radius: float) -> Floats:
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    waves: Any = sum(
        random.uniform(0.02, 0.1) * np.sin(n * angle + random.uniform(0, 6.3)) for n in (2, 3, 5)
    )
    corners = np.stack([np.cos(angle), np.sin(angle)], axis=1) * (radius * (1 + waves))[:, None]
    alpha = np.zeros((height, width), np.float32)
    cv2.fillPoly(alpha, [np.rint(corners + place).astype(np.int32)], (1.0,), cv2.LINE_AA)
    return np.asarray(cv2.GaussianBlur(alpha, (0, 0), 1.2))


def _colour(hue: float) -> Floats:
    levels = np.uint8([[[round(179 * hue), 190, 235]]])  # type: ignore[arg-type]
    return np.asarray(cv2.cvtColor(levels, cv2.COLOR_HSV2RGB)[0, 0] / np.float32(255))
