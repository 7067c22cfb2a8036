"""Finds the objects of a picture: their pixels and their colours.

Uses the palette, but not the model. It reads any picture, rendered or drawn by the model, and finds
whatever differs from the plain background around the border.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from tools.demo_image_model.palette import BACKGROUNDS, COLOURS

FOREGROUND_DISTANCE = 50.0
"""Distance from the background, in the 0-255 cube, above which a pixel belongs to an object: half
of the palette's least contrast (green on gray, 110)."""
MIN_AREA = 0.005
"""Smallest object, as a share of the picture; the smallest star covers 0.026."""
MAX_COLOUR_DISTANCE = 60.0
"""Largest distance of a colour from the palette's colour that gives its name."""
SEED_SHARE = 0.2
"""The share of a blob's inner pixels from which a second colour splits it."""
INNER_DEPTH = 0.6
"""Depth of the pixels that give an object's colour, relative to the deepest pixel."""
EDGE_REACH = 1 / 32
"""Reach of a blurred edge beyond the foreground, in image widths."""
EIGHT = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True, slots=True)
class Blob:
    """An object of a picture. `colour` is None if no name of the palette fits.

    `alpha` is the share of each pixel that the object covers, `[H, W]` fp32 in [0, 1].
    """

    colour: str | None
    alpha: np.ndarray


@dataclass(frozen=True, slots=True)
class Segmentation:
    """The contents of a picture. `background` is None if no name of the palette fits."""

    background: str | None
    blobs: tuple[Blob, ...]


def segment(pixels: np.ndarray) -> Segmentation:
    """Find background and objects, in reading order of their first pixels.

    Args:
        pixels: `[H, W, 3]` uint8, RGB.
    """
    picture = pixels.astype(np.float32)
    behind = _border_colour(picture)
    foreground = np.linalg.norm(picture - behind, axis=-1) > FOREGROUND_DISTANCE
    areas, count = ndimage.label(foreground, structure=EIGHT)
    blobs: list[Blob] = []
    for number in range(1, count + 1):
        for part in _split(picture, areas == number):
            if part.sum() >= MIN_AREA * foreground.size:
                blobs.append(_measure(picture, behind, part, foreground))
    return Segmentation(nearest_name(behind, BACKGROUNDS), tuple(blobs))


def nearest_name(colour: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str | None:
    """The palette's name for `colour`, `[3]` of 0-255, or None when all are too far away."""
    names = list(palette)
    distances = np.linalg.norm(np.array([palette[n] for n in names]) - colour, axis=1)
    best = int(distances.argmin())
    return names[best] if distances[best] <= MAX_COLOUR_DISTANCE else None


def _border_colour(picture: np.ndarray) -> np.ndarray:
    ring = np.concatenate([picture[0], picture[-1], picture[1:-1, 0], picture[1:-1, -1]])
    colour: np.ndarray = np.median(ring, axis=0)
    return colour


def _split(picture: np.ndarray, blob: np.ndarray) -> list[np.ndarray]:
    """The parts of a connected blob with different colours, such as touching objects."""
    core = _core(blob)
    palette = np.array(list(COLOURS.values()), dtype=np.float32)
    labels = np.linalg.norm(picture[:, :, None] - palette, axis=-1).argmin(axis=-1)
    seeds = np.full(blob.shape, -1)
    for label in np.unique(labels[core]):
        # Eroded, because mixed pixels along an edge may have the colours of other objects.
        inner = ndimage.binary_erosion(core & (labels == label))
        if inner.sum() >= max(3, SEED_SHARE * ndimage.binary_erosion(core).sum()):
            seeds[inner] = label
    found = [label for label in np.unique(seeds) if label >= 0]
    if len(found) < 2:
        return [blob]
    rows, columns = ndimage.distance_transform_edt(
        seeds < 0, return_distances=False, return_indices=True
    )
    nearest = seeds[rows, columns]
    return [blob & (nearest == label) for label in found]


def _core(mask: np.ndarray) -> np.ndarray:
    """The mask without its border, or the whole mask if nothing would be left."""
    core: np.ndarray = ndimage.binary_erosion(mask)
    return core if core.sum() >= 3 else mask


def _measure(
    picture: np.ndarray, behind: np.ndarray, part: np.ndarray, foreground: np.ndarray
) -> Blob:
    depth = ndimage.distance_transform_edt(part)
    colour = np.median(picture[depth >= INNER_DEPTH * depth.max()], axis=0)
    contrast = colour - behind
    alpha = (picture - behind) @ contrast / max(float(contrast @ contrast), 1.0)
    # Pixels around it that it covers slightly count too, unless they belong to another object.
    reach = max(1, round(EDGE_REACH * part.shape[0]))
    near = part | (ndimage.binary_dilation(part, structure=EIGHT, iterations=reach) & ~foreground)
    alpha = np.where(near, alpha.clip(0, 1), 0).astype(np.float32)
    return Blob(nearest_name(colour, COLOURS), alpha)
