"""How much each cell of the latents counts in the loss: those of objects more than the others.

A small object covers a fifteenth of the picture, and so would be a fifteenth of the loss: the model
would learn the background and large objects first.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from tools.demo_image_model.palette import SIZES
from tools.demo_image_model.scenes import Item

OBJECT_WEIGHT = 3.0
"""What a cell of the largest object counts above a cell of the background, which counts 1."""
LARGEST = SIZES["large"][1]


def object_weight(rows: Sequence[Sequence[Item]], cells: int) -> torch.Tensor:
    """`[N, 1, cells, cells]`: what each cell counts above the background, from a row's objects.

    Cells of an object count the more the smaller it is, so that all objects count alike. An
    object's cells are those within its radius and half a cell.
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
    """Mean squared error where cells count 1 + `above`; each row counts the same in all.

    Args:
        output, target: `[N, C, H, W]`.
        above: `[N, 1, H, W]`.
    """
    weight = 1 + above
    weight = weight / weight.mean(dim=(1, 2, 3), keepdim=True)
    return (weight * F.mse_loss(output, target, reduction="none")).mean()
