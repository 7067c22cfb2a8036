"""The update that one adapter adds to its rows."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class RowUpdates:
    """The update `scales[i] * b @ a` of the rows `rows[i]`, for one linear layer.

    Both weights are fastest if they are transposed in memory, which is the order in which they are
    read. Keep the object for repeated steps, since facts about it are cached.
    """

    a: Tensor
    """[r, K]."""
    b: Tensor
    """[N, r]."""
    rows: Tensor
    """[n] int64, each row once."""
    scales: Tensor
    """[n] fp32."""
