"""LoKr: `kron(W1, W2)`, where each factor is whole or of low rank.

Paper: Yeh et al. 2023 (LyCORIS), arXiv:2309.14859.
"""

from collections.abc import Mapping, Set

import torch
from torch import Tensor

from engine.lora.file_parts import Shape
from engine.lora.images.changes import Change, KroneckerProduct, Layer
from engine.lora.images.form import check_rank, flattened, misfit, mixing

LEFT, LEFT_FACTORS = "lokr_w1", ("lokr_w1_a", "lokr_w1_b")
RIGHT, RIGHT_FACTORS, CORE = "lokr_w2", ("lokr_w2_a", "lokr_w2_b"), "lokr_t2"


class Kronecker:
    """A `Form`."""

    peft_type = "LOKR"
    splits = False
    parts = frozenset((LEFT, *LEFT_FACTORS, RIGHT, *RIGHT_FACTORS, CORE))

    def lacks(self, parts: Set[str]) -> str | None:
        for whole, factors in ((LEFT, LEFT_FACTORS), (RIGHT, RIGHT_FACTORS)):
            if whole not in parts:
                missing = [part for part in factors if part not in parts]
                if missing:
                    return missing[0]
        return None

    def rank(self, name: str, shapes: Mapping[str, Shape], layer: Layer) -> int | None:
        left, right = self._left(shapes), self._right(shapes, layer)
        kernel = () if layer.num_cells == 1 else layer.kernel or ()
        if left is None or right is None or flattened(right)[2:] != kernel:
            raise misfit(name, shapes, layer)
        sizes = left[0] * right[0], left[1] * right[1]
        if sizes != (layer.out_features, layer.in_features):
            raise misfit(name, shapes, layer)
        ranks = [shapes[part][0] for part in ("lokr_w1_b", "lokr_w2_b") if part in shapes]
        return check_rank(name, max(ranks)) if ranks else None

    def num_weights(self, shapes: Mapping[str, Shape], layer: Layer) -> int:
        left, right = self._left(shapes), self._right(shapes, layer)
        assert left is not None and right is not None
        return left[0] * left[1] + right[0] * right[1] * layer.num_cells

    def change(self, tensors: Mapping[str, Tensor], layer: Layer, scale: float) -> Change:
        left = tensors.get(LEFT)
        if left is None:
            left = tensors["lokr_w1_a"] @ tensors["lokr_w1_b"]
        right = tensors.get(RIGHT)
        if right is None:
            a, b = tensors["lokr_w2_a"], tensors["lokr_w2_b"]
            if CORE in tensors:
                right = torch.einsum("ijkl,ip,jr->prkl", tensors[CORE], a, b)
            else:
                right = (a @ b).view(len(a), -1, *(layer.kernel or ()))
        return KroneckerProduct(layer, left * scale, mixing(right))

    def _left(self, shapes: Mapping[str, Shape]) -> Shape | None:
        """The shape `[o1, i1]`, or None if the parts do not fit together."""
        if LEFT in shapes:
            is_alone = shapes.keys().isdisjoint(LEFT_FACTORS)
            return shapes[LEFT] if is_alone and len(shapes[LEFT]) == 2 else None
        return _product(*(shapes[part] for part in LEFT_FACTORS))

    def _right(self, shapes: Mapping[str, Shape], layer: Layer) -> Shape | None:
        """The shape `[o2, i2]` or `[o2, i2, k, k]`, or None if the parts do not fit together."""
        if RIGHT in shapes:
            is_alone = shapes.keys().isdisjoint((*RIGHT_FACTORS, CORE))
            return shapes[RIGHT] if is_alone and len(shapes[RIGHT]) in (2, 4) else None
        a, b = (shapes[part] for part in RIGHT_FACTORS)
        if CORE in shapes:
            core = shapes[CORE]
            fits = len(core) == 4 and len(a) == len(b) == 2 and core[:2] == (a[0], b[0])
            return (a[1], b[1], *core[2:]) if fits else None
        found = _product(a, b)
        if found is None or found[1] % layer.num_cells:
            return None
        return (found[0], found[1] // layer.num_cells, *(layer.kernel or ()))


def _product(a: Shape, b: Shape) -> Shape | None:
    fits = len(a) == len(b) == 2 and a[1] == b[0] > 0
    return (a[0], b[1]) if fits else None
