"""In what the numbers of adapters are kept."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from engine.lora.peft_files import Adapter
from kernels.lora_gather import pack, row_bytes


class AdapterNumbers(NamedTuple):
    """Those of updates of linear and output layers; embeddings' are in the model's type."""

    dtype: torch.dtype
    """The model's."""
    is_packed: bool = False
    """They have 8 bits (`kernels.lora_gather.packed`)."""

    def row_bytes(self, length: int) -> int:
        """That so many numbers of a rank take."""
        return row_bytes(length) if self.is_packed else length * self.dtype.itemsize

    def kept(self, adapter: Adapter, layers: Collection[str]) -> Adapter:
        """An adapter as it is kept. Takes its time.

        Args:
            layers: linear and output layers.
        """
        if not self.is_packed:
            return adapter
        every = {name: update for name, update in adapter.updates.items() if name in layers}
        a = _packed({name: update.a for name, update in every.items()})
        b = _packed({name: update.b for name, update in every.items()})
        packed = {name: replace(update, a=a[name], b=b[name]) for name, update in every.items()}
        return replace(adapter, updates={**adapter.updates, **packed})


def _packed(matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those that are equally wide at once: there are hundreds of small ones."""
    alike: dict[int, list[str]] = {}
    for name, matrix in matrices.items():
        alike.setdefault(matrix.shape[1], []).append(name)
    found: dict[str, Tensor] = {}
    for names in alike.values():
        parts = [matrices[name] for name in names]
        rows = torch.split(pack(torch.cat(parts)), [len(part) for part in parts])
        found.update(zip(names, rows, strict=True))
    return found
