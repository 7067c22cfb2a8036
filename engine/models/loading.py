"""Fills a model from a stream of named tensors and checks every name and shape."""

from collections.abc import Iterable, Iterator

import structlog
import torch
from torch import Tensor, nn

from engine.errors import MissingWeight
from engine.models.layers.weight_slots import WeightOptions, WeightOwner, WeightSlot

log = structlog.get_logger(__name__)

MAX_NAMED = 5
"""The most names that an error message lists."""


class Loader:
    """Passes tensors to the layers that wait for them, and finishes layers as they become
    complete."""

    def __init__(self, model: nn.Module, options: WeightOptions) -> None:
        self._slots: dict[str, tuple[WeightSlot, WeightOwner]] = {}
        self._missing: dict[WeightOwner, set[str]] = {}
        """The tensors that owners still wait for."""
        self._followers: list[WeightOwner] = []
        """Owners that use the tensors of others, such as a tied output layer."""
        for path, module in model.named_modules():
            if isinstance(module, WeightOwner):
                slots = module.create_weights(path, options)
                self._slots |= {name: (slot, module) for name, slot in slots.items()}
                if slots:
                    self._missing[module] = set(slots)
                else:
                    self._followers.append(module)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes that the checkpoint must have."""
        return {name: slot.spec.shape for name, (slot, _) in self._slots.items()}

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> list[str]:
        """Take all tensors and return the names that no layer knows.

        Raises:
            MissingWeight: some layer did not get all its tensors.
            ShapeMismatch: a tensor's shape or dtype differs from the configuration's.
            ModelLoadError: a tensor's numbers are impossible; the message names it.
        """
        unexpected = []
        for name, tensor in weights:
            if name in self._slots:
                self._take(name, tensor)
            else:
                unexpected.append(name)
        missing = [name for names in self._missing.values() for name in names]
        if missing:
            raise MissingWeight(
                f"the checkpoint lacks {_listed(missing)}; it is incomplete, or its configuration "
                f"names the wrong architecture"
            )
        for module in self._followers:
            module.process_weights_after_loading()
        return unexpected

    def _take(self, name: str, tensor: Tensor) -> None:
        slot, owner = self._slots[name]
        slot.spec.check(name, tensor)
        slot.load(tensor)
        missing = self._missing[owner]
        missing.discard(name)
        if not missing:
            owner.process_weights_after_loading()


@torch.inference_mode()
def load_weights(
    model: nn.Module, weights: Iterable[tuple[str, Tensor]], options: WeightOptions
) -> list[str]:
    """Fill `model`; log and return the tensors that it does not know.

    Raises:
        MissingWeight, ShapeMismatch: the message names the tensor.
    """
    unexpected = Loader(model, options).load(weights)
    if unexpected:
        log.warning("unexpected tensors were ignored", tensors=sorted(unexpected))
    return unexpected


@torch.inference_mode()
def load_dummy_weights(model: nn.Module, options: WeightOptions, seed: int = 0) -> None:
    """Fill `model` with small random numbers, for speed tests without a checkpoint."""
    loader = Loader(model, options)
    loader.load(_random_weights(loader.shapes(), seed))


def _random_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for name, shape in shapes.items():
        if len(shape) == 1 and name.endswith("weight"):
            yield name, torch.ones(shape)
        else:
            yield name, torch.randn(shape, generator=generator).mul_(0.02)


def _listed(names: list[str]) -> str:
    names = sorted(names)
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
