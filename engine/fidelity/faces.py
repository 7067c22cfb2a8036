"""Limits invented detail in faces, where people notice it most.

Faces are found by the cascade that comes with OpenCV (Viola and Jones 2001). It finds upright faces
that look at the camera, misses others, and sometimes takes something else for a face.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from engine.pictures.alpha import premultiplied, straight
from engine.pictures.arrays import Bytes, Floats, scaled_size
from engine.pictures.resampling import Resampling
from engine.pictures.resizing import resized

_LONGEST_SIDE = 1280
"""The longest side in pixels at which faces are sought: larger pictures are reduced to save
time."""
_SMALLEST_FACE = 24
"""The side of the cascade's window in pixels."""
_NUM_NEIGHBOURS = 5
"""The number of overlapping finds that make a face."""
_FULL, _NONE = 0.6, 1.0
"""Two distances from a face's middle, in sides of its box: a face is fully guarded up to the first,
and not at all from the second on."""


@dataclass(frozen=True, slots=True)
class Face:
    """A square around a face; corner and side are shares of the picture's width and height."""

    left: float
    top: float
    width: float
    height: float


def find_faces(picture: Bytes) -> list[Face]:
    """Find the faces in a picture `[H, W, C]`, from the top left."""
    height, width = picture.shape[:2]
    colours = np.rint(premultiplied(picture)[..., :3]).astype(np.uint8)
    low = scaled_size(height, width, _LONGEST_SIDE / max(height, width))
    small = cv2.equalizeHist(resized(cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY), *low))
    boxes = _cascade().detectMultiScale(
        small, scaleFactor=1.1, minNeighbors=_NUM_NEIGHBOURS, minSize=(_SMALLEST_FACE,) * 2
    )
    return sorted(
        (
            Face(x / low[1], y / low[0], w / low[1], h / low[0])
            for x, y, w, h in np.asarray(boxes, np.float64).reshape(-1, 4).tolist()
        ),
        key=lambda face: (face.top, face.left),
    )


class FaceGuard:
    """Draws faces of a result back towards those of its enlarged input.

    Args:
        original: the input, `[h, w, C]`.
        faces: the faces of the input.
        height, width: the size of the result.
        strength: 0 leaves the faces as they are, 1 replaces them by the enlarged original.
    """

    def __init__(
        self, original: Bytes, faces: Sequence[Face], height: int, width: int, strength: float
    ) -> None:
        self._size = height, width
        self._faces, self._strength = faces, strength
        self._plain = premultiplied(original)
        self._enlarge = Resampling.between(original.shape[:2], self._size)

    def guarded(self, rows: Bytes, first: int) -> Bytes:
        """Guard rows `[B, W, C]` that begin at row `first`; rows without a face are unchanged."""
        end = first + len(rows)
        weights = self._strength * face_weights(self._faces, self._size, first, end)[..., None]
        if not weights.any():
            return rows
        planes = premultiplied(rows)
        planes += weights * (self._enlarge.band(self._plain, slice(first, end)) - planes)
        return np.where(weights == 0, rows, straight(planes, rows))


def face_weights(faces: Sequence[Face], size: tuple[int, ...], first: int, end: int) -> Floats:
    """The soft mask of some rows of a picture of `size` (height, width): `[end - first, W]` in [0,
    1], 1 in the middle of faces and 0 away from them."""
    height, width = size
    rows = (np.arange(first, end, dtype=np.float32)[:, None] + 0.5) / height
    columns = (np.arange(width, dtype=np.float32)[None, :] + 0.5) / width
    weights = np.zeros((end - first, width), np.float32)
    for face in faces:
        down = (rows - face.top - face.height / 2) / face.height
        right = (columns - face.left - face.width / 2) / face.width
        fade = np.clip((np.hypot(down, right) - _FULL) / (_NONE - _FULL), 0, 1)
        np.maximum(weights, 0.5 + 0.5 * np.cos(math.pi * fade), out=weights)
    return weights


def _cascade() -> cv2.CascadeClassifier:
    """A new cascade, since it is not safe to share between threads; it loads in milliseconds."""
    folder = Path(cv2.__file__).parent / "data"
    return cv2.CascadeClassifier(str(folder / "haarcascade_frontalface_default.xml"))
