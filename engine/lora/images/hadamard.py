"""LoHa: `(W1a·W1b) ∘ (W2a·W2b)`, an elementwise product of two low-rank matrices.

The result has low rank itself, at most the product of both ranks, and is computed from its factors
where that is less work than the whole update.

Paper: Hyeon-Woo et al. 2021 (FedPara), arXiv:2108.06098.
"""

from collections.abc import Mapping, Set

import torch
from torch import Tensor

from engine.lora.file_parts import Shape
from engine.lora.images.changes import Change, Layer, Product
from engine.lora.images.form import check_rank, misfit

_FACTORS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_CORES = ("hada_t1", "hada_t2")


class Hadamard:
    """A `Form`."""

    peft_type = "LOHA"
    splits = True
    parts = frozenset((*_FACTORS, *_CORES))

    def lacks(self, parts: Set[str]) -> str | None:
        wanted = (*_FACTORS, *(_CORES if parts & set(_CORES) else ()))
        return next((part for part in wanted if part not in parts), None)

    def rank(self, name: str, shapes: Mapping[str, Shape], layer: Layer) -> int:
        rank = shapes["hada_w1_b"][0] if shapes["hada_w1_b"] else 0
        if "hada_t1" in shapes:
            side = {"a": (rank, layer.out_features), "b": (rank, layer.in_features)}
        else:
            inputs = layer.in_features * layer.num_cells
            side = {"a": (layer.out_features, rank), "b": (rank, inputs)}
        wanted: dict[str, Shape] = {part: side[part[-1]] for part in _FACTORS}
        if "hada_t1" in shapes:
            wanted |= dict.fromkeys(_CORES, (rank, rank, *(layer.kernel or ())))
        if dict(shapes) != wanted:
            raise misfit(name, shapes, layer)
        return check_rank(name, rank)

    def num_weights(self, shapes: Mapping[str, Shape], layer: Layer) -> int:
        inputs = layer.in_features * layer.num_cells
        whole = inputs * layer.out_features
        if "hada_t1" in shapes:
            return whole
        return min(whole, shapes["hada_w1_b"][0] ** 2 * (inputs + layer.out_features))

    def change(self, tensors: Mapping[str, Tensor], layer: Layer, scale: float) -> Change:
        (a1, b1), (a2, b2) = (
            (tensors[f"hada_w{number}_a"], tensors[f"hada_w{number}_b"]) for number in (1, 2)
        )
        if "hada_t1" in tensors:
            whole = _rebuilt(tensors["hada_t1"], a1, b1) * _rebuilt(tensors["hada_t2"], a2, b2)
            return Product(layer, (_shaped(whole * scale, layer),))
        num_whole = b1.shape[1] * len(a1)
        if len(b1) ** 2 * (b1.shape[1] + len(a1)) >= num_whole:
            return Product(layer, (_shaped((a1 @ b1) * (a2 @ b2) * scale, layer),))
        # Row (i, j) is the product of row i of the first and row j of the second.
        down = (b1[:, None] * b2[None]).flatten(0, 1)
        up = (a1[:, :, None] * a2[:, None]).flatten(1)
        return Product(layer, (_shaped(down, layer), up * scale))


def _rebuilt(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Compute `[out, in, k, k]` from a Tucker product."""
    return torch.einsum("ijkl,jr,ip->prkl", core, b, a)


def _shaped(weight: Tensor, layer: Layer) -> Tensor:
    """View a weight as the matrix `[n, in · cells]` that inputs are multiplied by."""
    if layer.num_cells == 1:
        return weight.flatten(1)
    return weight.view(len(weight), layer.in_features, *(layer.kernel or ()))
