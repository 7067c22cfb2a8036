"""Whole modules that adapters bring in place of the model's: embeddings, output layers, norms.

Each is made by the model's module from a weight (`own_copy`), in memory of its own beside the
arrays that all adapters share. A step computes all of its rows with each of them and selects those
that have it; output layers compute their own rows alone.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from engine.contract.host import Grant
from engine.lora.slots import CopiesOf
from engine.models.layers.embedding import LmHead, TokenEmbedding
from engine.models.layers.norm import RmsNorm

Copyable = TokenEmbedding | LmHead | RmsNorm


class OwnModules:
    """The modules that adapters bring, by the slots of the adapters.

    Args:
        modules: those of the model that adapters may replace.
    """

    def __init__(self, modules: Iterable[Copyable]) -> None:
        self._modules = {module.path: module for module in modules}
        self._kept: dict[int, tuple[Mapping[str, Any], Grant]] = {}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the modules that adapters may replace, by path."""
        return {
            path: (module.size,) if isinstance(module, RmsNorm) else module.shape
            for path, module in self._modules.items()
        }

    @property
    def copies(self) -> CopiesOf:
        """The modules for the rows of a step."""
        found: dict[str, list[tuple[int, Any]]] = {}
        for slot, (made, _) in sorted(self._kept.items()):
            for path, copy in made.items():
                found.setdefault(path, []).append((slot, copy))
        return found

    def make(self, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """Make modules from an adapter's weights. Slow."""
        return {path: self._modules[path].own_copy(weight) for path, weight in weights.items()}

    def put(self, slot: int, made: Mapping[str, Any], grant: Grant) -> None:
        """Set the modules for the rows of a slot.

        Args:
            grant: the grant of the modules' memory.
        """
        self._kept[slot] = (made, grant)

    def drop(self, slot: int) -> Grant | None:
        """Forget the modules of a slot and return their memory's grant."""
        _, grant = self._kept.pop(slot, (None, None))
        return grant
