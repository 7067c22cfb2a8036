"""The rows of a step and the slots of their sequences' states, for layers that keep a state instead
of keys and values."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.shared.transfer import to_device

NO_SLOT = -1
"""The slot from which a text without computed tokens reads: its state is zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentBatch:
    """B sequences of packed rows, in the order of `PagedBatch`.

    A sequence reads its state from one slot and writes it to another, or to the same one. No slot
    is written by one sequence and used by another in the same step, except one whose contents
    nobody needs. A sequence without rows may leave anything in its slot.
    """

    cu_seqlens_q: Tensor
    """[B + 1] int32, row offsets; sequence b owns rows cu_seqlens_q[b] .. cu_seqlens_q[b + 1]."""
    read_slots: Tensor
    """[B] int32: the slots that hold the states before the rows, or `NO_SLOT`."""
    write_slots: Tensor
    """[B] int32: the slots that get the states after the rows."""

    @property
    def num_sequences(self) -> int:
        """B."""
        return len(self.read_slots)

    @classmethod
    def from_host(
        cls,
        cu_seqlens_q: NDArray[np.int32],
        read_slots: NDArray[np.int32],
        write_slots: NDArray[np.int32],
        device: torch.device,
    ) -> "RecurrentBatch":
        """Make the tensors; the arrays must not change afterwards."""
        offsets, reads, writes = to_device([cu_seqlens_q, read_slots, write_slots], device)
        return cls(cu_seqlens_q=offsets, read_slots=reads, write_slots=writes)

    def on_host(self) -> list[tuple[int, int, int, int]]:
        """The first and last row, and both slots, of each sequence; waits for the device."""
        offsets = self.cu_seqlens_q.tolist()
        slots = (self.read_slots.tolist(), self.write_slots.tolist())
        return list(zip(offsets, offsets[1:], *slots, strict=False))
