"""Renders scenes from signed distances, anti-aliased over one pixel, at any resolution."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from tools.demo_image_model.palette import BACKGROUNDS, COLOURS, SHAPES
from tools.demo_image_model.scenes import Scene

SQUARE_HALF = 0.80
CROSS_ARM = 0.30
STAR_INNER = 0.45
"""Half side of a square, half width of a cross's arm, inner corners of a star, in radii."""


def render(scenes: Sequence[Scene], size: int) -> torch.Tensor:
    """The pictures of the scenes, `[N, 3, size, size]` fp32 in [-1, 1]."""
    background = torch.tensor([BACKGROUNDS[s.background] for s in scenes], dtype=torch.float32)
    canvas = background[:, :, None, None].expand(-1, -1, size, size).clone()
    for layer in range(max(len(scene.items) for scene in scenes) if scenes else 0):
        rows = [i for i, scene in enumerate(scenes) if len(scene.items) > layer]
        items = [scenes[i].items[layer] for i in rows]
        colour = torch.tensor([COLOURS[item.colour] for item in items], dtype=torch.float32)
        alpha = coverage([(i.shape, i.x, i.y, i.radius) for i in items], size)[:, None]
        canvas[rows] = canvas[rows] * (1 - alpha) + colour[:, :, None, None] * alpha
    return canvas / 127.5 - 1


def coverage(items: Sequence[tuple[str, float, float, float]], size: int) -> torch.Tensor:
    """The share of each pixel that (shape, x, y, radius) covers, `[N, size, size]` in [0, 1]."""
    shapes = [shape for shape, *_ in items]
    centre = torch.tensor([[x, y, r] for _, x, y, r in items], dtype=torch.float32)
    grid = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    x = (grid[None, None, :] - centre[:, 0, None, None]).expand(-1, size, -1)
    y = (grid[None, :, None] - centre[:, 1, None, None]).expand(-1, -1, size)
    radius = centre[:, 2, None, None]
    distance = torch.empty(len(items), size, size)
    for shape in set(shapes):
        rows = torch.tensor([i for i, s in enumerate(shapes) if s == shape])
        unit_x, unit_y = x[rows] / radius[rows], y[rows] / radius[rows]
        distance[rows] = DISTANCES[shape](unit_x, unit_y) * radius[rows]
    return (0.5 - distance * size).clamp(0, 1)


def _circle(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.sqrt(x * x + y * y) - 1


def _box(x: torch.Tensor, y: torch.Tensor, half_x: float, half_y: float) -> torch.Tensor:
    return torch.maximum(x.abs() - half_x, y.abs() - half_y)


def _square(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return _box(x, y, SQUARE_HALF, SQUARE_HALF)


def _cross(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.minimum(_box(x, y, 1.0, CROSS_ARM), _box(x, y, CROSS_ARM, 1.0))


def _polygon(corners: np.ndarray) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Exact signed distance to a simple polygon, `[K, 2]` in radii (after I. Quilez, 2D SDFs)."""

    def distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        nearest = torch.full_like(x, torch.inf)
        sign = torch.ones_like(x)
        for (ax, ay), (bx, by) in zip(corners, np.roll(corners, 1, axis=0), strict=True):
            edge_x, edge_y = bx - ax, by - ay
            from_x, from_y = x - ax, y - ay
            along = (from_x * edge_x + from_y * edge_y) / (edge_x**2 + edge_y**2)
            along = along.clamp(0, 1)
            off_x, off_y = from_x - edge_x * along, from_y - edge_y * along
            nearest = torch.minimum(nearest, off_x * off_x + off_y * off_y)
            side = edge_x * from_y > edge_y * from_x
            above, below = y >= ay, y < by
            crosses = (above & below & side) | (~above & ~below & ~side)
            sign = torch.where(crosses, -sign, sign)
        return sign * nearest.sqrt()

    return distance


def _ring_of_corners(count: int, radii: Sequence[float]) -> np.ndarray:
    """`count` corners starting at the top, their distances from the centre taken in turn."""
    angle = 2 * np.pi * np.arange(count) / count
    radius = np.resize(np.asarray(radii), count)
    return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], axis=1)


DISTANCES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _polygon(_ring_of_corners(3, [1.0])),
    "star": _polygon(_ring_of_corners(10, [1.0, STAR_INNER])),
    "cross": _cross,
}
"""Signed distance of each shape with radius 1, negative inside."""
assert set(DISTANCES) == set(SHAPES)
