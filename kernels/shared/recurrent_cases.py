"""Random batches of sequences with states, for the cases of operations."""

import random

import numpy as np
import torch

from kernels.shared.recurrent_batch import NO_SLOT, RecurrentBatch


def random_batch(rows: tuple[int, ...], device: torch.device) -> tuple[RecurrentBatch, int]:
    """Make sequences of so many rows each; those of a negative number have no state yet.

    Returns:
        The batch and the number of slots. Some slots are used by nobody, some states are written to
        another slot than they are read from.
    """
    num_slots = 2 * len(rows) + 2
    slots = random.sample(range(num_slots), 2 * len(rows))
    reads, writes = slots[: len(rows)], slots[len(rows) :]
    writes = [random.choice((read, write)) for read, write in zip(reads, writes, strict=True)]
    reads = [NO_SLOT if n < 0 else read for n, read in zip(rows, reads, strict=True)]
    offsets = np.concatenate(([0], np.cumsum(np.abs(rows)))).astype(np.int32)
    batch = RecurrentBatch.from_host(
        offsets, np.array(reads, np.int32), np.array(writes, np.int32), device
    )
    return batch, num_slots
