"""Gives tensors with the names of a transformer's original release those of diffusers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from engine.errors import ShapeMismatch

_SCALES = {"scale_weight": "weight_scale", "scale_input": "input_scale"}
"""ComfyUI's older names of the scales of 8-bit floats, and their names in other checkpoints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginalNames:
    """A transformer's names in its original release. Names that are not listed are diffusers' own.

    Attributes:
        modules: diffusers' modules by the original's. Several modules are one after the other in
            the rows of one original module, in this order.
        swapped: diffusers' modules by the original's, where diffusers exchanges the two halves
            (shift and scale) of the rows.
        parameters: diffusers' names of parameters, the last part of tensors' names.
        unused: tensors that diffusers' module does not have.
    """

    modules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    swapped: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    unused: frozenset[str] = frozenset()

    def to_diffusers(
        self, name: str, tensor: torch.Tensor, num_rows: Mapping[str, int]
    ) -> dict[str, torch.Tensor]:
        """Rename a tensor, or split it. Packed rows of a quantised matrix are split alike, and the
        parts share a scale of the whole matrix.

        Args:
            num_rows: the rows of diffusers' tensors `….weight`, by the module's name.

        Raises:
            ShapeMismatch: the tensor has another number of rows than its parts.
        """
        if name in self.unused:
            return {}
        module, _, kind = name.rpartition(".")
        kind = self.parameters.get(kind, _SCALES.get(kind, kind))
        parts = self.modules.get(module, (module,))
        if module in self.swapped:
            parts = (self.swapped[module],)
            if tensor.numel() > 1:
                first, second = tensor.chunk(2)
                tensor = torch.cat([second, first])
        names = [f"{part}.{kind}" if part else kind for part in parts]
        if len(parts) == 1 or tensor.numel() == 1:
            return dict.fromkeys(names, tensor)
        sizes = [num_rows[part] for part in parts]
        if len(tensor) != sum(sizes):
            raise ShapeMismatch(
                f"{name} has {len(tensor)} rows; by the transformer's config.json it has "
                f"{sum(sizes)}: take the config.json of the same model"
            )
        return dict(zip(names, torch.split(tensor, sizes), strict=True))


def rows_of(state: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """The rows of each module's weight, for `to_diffusers`."""
    weight = ".weight"
    return {
        name.removesuffix(weight): len(tensor)
        for name, tensor in state.items()
        if name.endswith(weight)
    }
