"""`B·A`: LoRA of linear layers and convolutions (LoCon), with a Tucker core where a file has one.

Papers: Hu et al. 2021, arXiv:2106.09685; Yeh et al. 2023 (LyCORIS), arXiv:2309.14859.
"""

import math
from collections.abc import Mapping, Set

from torch import Tensor

from engine.lora.file_parts import Shape
from engine.lora.images.changes import Change, Layer, Product
from engine.lora.images.form import check_rank, flattened, misfit, mixing

DOWN, MID, UP = "down", "mid", "up"


class LowRank:
    """A `Form`."""

    peft_type = "LORA"
    splits = True
    parts = frozenset((DOWN, MID, UP))

    def lacks(self, parts: Set[str]) -> str | None:
        return next((part for part in (DOWN, UP) if part not in parts), None)

    def rank(self, name: str, shapes: Mapping[str, Shape], layer: Layer) -> int:
        rank = shapes[DOWN][0] if shapes[DOWN] else 0
        kernel = () if layer.num_cells == 1 else layer.kernel or ()
        wanted = {DOWN: (rank, layer.in_features, *kernel), UP: (layer.out_features, rank)}
        if MID in shapes:
            wanted |= {DOWN: (rank, layer.in_features), MID: flattened((rank, rank, *kernel))}
        if {part: flattened(shape) for part, shape in shapes.items()} != wanted:
            raise misfit(name, shapes, layer)
        return check_rank(name, rank)

    def num_weights(self, shapes: Mapping[str, Shape], layer: Layer) -> int:
        return sum(map(math.prod, shapes.values()))

    def change(self, tensors: Mapping[str, Tensor], layer: Layer, scale: float) -> Change:
        chain = [mixing(tensors[part]) for part in (DOWN, MID, UP) if part in tensors]
        return Product(layer, (*chain[:-1], chain[-1] * scale))
