"""Whole modules that adapters bring in place of the model's: embeddings, output layers, norms.

Each is what its module makes of a weight (`own_copy`), in memory of its own beside the arrays that
all adapters share. A step computes all of its rows with each of them and takes those that have it;
output layers compute their own rows alone.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from engine.host import Grant
from engine.lora.slots import CopiesOf
from engine.models.layers.embedding import LmHead, TokenEmbedding
from engine.models.layers.norm import RmsNorm

Copyable = TokenEmbedding | LmHead | RmsNorm


class OwnModules:
    """By the slots of their adapters.

    Args:
        modules: those that adapters may bring.
    """

    def __init__(self, modules: Iterable[Copyable]) -> None:
        self._modules = {module.path: module for module in modules}
        self._kept: dict[int, tuple[Mapping[str, Any], Grant]] = {}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of what they may bring, by path."""
        return {
            path: (module.size,) if isinstance(module, RmsNorm) else module.shape
            for path, module in self._modules.items()
        }

    @property
    def copies(self) -> CopiesOf:
        """For the rows of a step."""
        found: dict[str, list[tuple[int, Any]]] = {}
        for slot, (made, _) in sorted(self._kept.items()):
            for path, copy in made.items():
                found.setdefault(path, []).append((slot, copy))
        return found

    def make(self, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """What modules make of an adapter's weights. Takes its time."""
        return {path: self._modules[path].own_copy(weight) for path, weight in weights.items()}

    def put(self, slot: int, made: Mapping[str, Any], grant: Grant) -> None:
        """Have the rows of a slot use them.

        Args:
            grant: of their memory.
        """
        self._kept[slot] = (made, grant)

    def drop(self, slot: int) -> Grant | None:
        """Forget those of a slot; returns their memory's grant."""
        _, grant = self._kept.pop(slot, (None, None))
        return grant
