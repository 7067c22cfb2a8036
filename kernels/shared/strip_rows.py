"""Looks up single rows of a weight in strips of 16 outputs, whose numbers lie side by side."""

from dataclasses import dataclass

from torch import Tensor

STRIP = 16


@dataclass(frozen=True, slots=True)
class StripRows:
    """Finds rows by the places of a strip's first row; the number of the next row follows each of
    them.

    Attributes:
        numbers: [strips, numbers of a strip], one run of memory.
        places: [n] int64, within a strip.
    """

    numbers: Tensor
    places: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """[T] int64 → [T, n], new memory."""
        starts = rows // STRIP * self.numbers.shape[1] + rows % STRIP
        where = (starts.unsqueeze(1) + self.places).view(-1)
        return self.numbers.view(-1).index_select(0, where).view(len(rows), -1)
