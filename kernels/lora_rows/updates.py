"""What one adapter adds to the rows that have it."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class RowUpdates:
    """`scales[i] * b @ a` of the rows `rows[i]`, for one linear layer.

    Both weights are fastest in the order of memory in which they are read: turned. Whoever adds the
    same in every step keeps the object: what is known of it is found again.
    """

    a: Tensor
    """[r, K]."""
    b: Tensor
    """[N, r]."""
    rows: Tensor
    """[n] int64, each once."""
    scales: Tensor
    """[n] fp32."""
