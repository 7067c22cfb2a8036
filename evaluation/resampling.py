"""Resampling of items, or of groups of items that depend on each other."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from evaluation.score_rows import Floats

RESAMPLES = 2000
PERMUTATIONS = 10_000
_EXACT_GROUPS = 13
"""Up to so many groups, all ways to swap them are tried."""
_CHUNK = 256


class Groups:
    """Which items belong together. An item without a group is one of its own.

    Args:
        names: the name of each item's group, or None.
    """

    def __init__(self, names: Sequence[str | None]) -> None:
        numbers: dict[object, int] = {}
        keys = [("item", i) if name is None else ("group", name) for i, name in enumerate(names)]
        self._numbers: npt.NDArray[np.int64] = np.array(
            [numbers.setdefault(key, len(numbers)) for key in keys], np.int64
        )
        self.num = len(numbers)
        self.are_single = self.num == len(names)

    @property
    def members(self) -> list[npt.NDArray[np.int64]]:
        """The numbers of the items of each group."""
        return [np.flatnonzero(self._numbers == number) for number in range(self.num)]

    def sums(self, rows: Floats) -> Floats:
        """The sum of the rows of each group."""
        sums = np.zeros((self.num, rows.shape[1]))
        np.add.at(sums, self._numbers, rows)
        return sums


def bootstrap(
    rows: Floats,
    values: Callable[[Floats], Floats],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> Floats:
    """Values of sums of rows that are drawn with replacement, as many as there are."""
    generator = np.random.default_rng(seed)
    shares = np.full(len(rows), 1 / len(rows))
    found = [
        values(generator.multinomial(len(rows), shares, size).astype(np.float64) @ rows)
        for size in _chunks(resamples)
    ]
    return np.concatenate(found)


def swaps(num: int, *, seed: int) -> Iterator[Floats]:
    """Ways to swap two sides of `num` groups, as rows of zeros and ones: all ways if there are few,
    otherwise random ones. The first is to swap none."""
    if num <= _EXACT_GROUPS:
        yield (np.arange(2**num)[:, None] >> np.arange(num) & 1).astype(np.float64)
        return
    generator = np.random.default_rng(seed)
    yield np.zeros((1, num))
    for size in _chunks(PERMUTATIONS):
        yield generator.integers(0, 2, (size, num)).astype(np.float64)


def relabellings(num: int, num_chosen: int, *, seed: int) -> Iterator[Floats]:
    """Random ways to choose some of `num` groups, as rows of zeros and ones. The first is to choose
    those at the beginning."""
    generator = np.random.default_rng(seed)
    row = (np.arange(num) < num_chosen).astype(np.float64)
    yield row[None]
    for size in _chunks(PERMUTATIONS):
        yield generator.permuted(np.tile(row, (size, 1)), axis=1)


def _chunks(total: int) -> Iterator[int]:
    for start in range(0, total, _CHUNK):
        yield min(_CHUNK, total - start)
