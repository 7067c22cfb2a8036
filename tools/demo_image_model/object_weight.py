"""The weight of each cell of the latents in the loss, which is higher for cells of objects.

A small object covers a fifteenth of the picture. If it made up a fifteenth of the loss, the model
would learn the background and large objects first.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from tools.demo_image_model.palette import SIZES
from tools.demo_image_model.scenes import Item

OBJECT_WEIGHT = 3.0
"""Extra weight of a cell of the largest object; a cell of the background has weight 1."""
LARGEST = SIZES["large"][1]


def object_weight(rows: Sequence[Sequence[Item]], cells: int) -> torch.Tensor:
    """The extra weight of each cell, `[N, 1, cells, cells]`, from each row's objects.

    Smaller objects have heavier cells, so that all objects weigh the same. An object's cells are
    those within its radius plus half a cell.
    """
    grid = (torch.arange(cells) + 0.5) / cells
    weights = torch.zeros(len(rows), 1, cells, cells)
    for row, items in enumerate(rows):
        for item in items:
            distance = torch.hypot(grid[None, :] - item.x, grid[:, None] - item.y)
            inside = distance <= item.radius + 0.5 / cells
            above = OBJECT_WEIGHT * (LARGEST / item.radius) ** 2
            weights[row, 0] = torch.maximum(weights[row, 0], above * inside)
    return weights


def weighted_mse(output: torch.Tensor, target: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
    """Mean squared error in which cells weigh 1 + `above`, and all rows weigh the same.

    Args:
        output, target: `[N, C, H, W]`.
        above: `[N, 1, H, W]`.
    """
    weight = 1 + above
    weight = weight / weight.mean(dim=(1, 2, 3), keepdim=True)
    return (weight * F.mse_loss(output, target, reduction="none")).mean()
