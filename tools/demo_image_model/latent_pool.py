"""A rolling store of encoded scenes, so that a training step need not render and encode its batch.

Scene `i` of the endless stream sits at `i mod size`; each step replaces the oldest few. The store
follows from its seed and the number of scenes drawn, so a resumed run rebuilds it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

import torch

S = TypeVar("S")

BASE_SIZE = 64

ENCODE_BATCH = 64


def batch_at(batch: int, size: int) -> int:
    """Pictures of `size` pixels that cost about as much as `batch` of `BASE_SIZE`."""
    return max(1, batch * BASE_SIZE**2 // size**2)


def num_steps_at(size: int, turns: Sequence[int], steps: int) -> int:
    """The number of steps at `size` among the first `steps`, when sizes take these turns."""
    rounds, rest = divmod(steps, len(turns))
    return rounds * turns.count(size) + turns[:rest].count(size)


class LatentPools(Generic[S]):
    """A pool for each picture size. Sizes take turns; a size that is named twice takes two."""

    def __init__(
        self,
        sizes: Sequence[int],
        draw: Callable[[int, int], S],
        encode: Callable[[int, Sequence[S]], torch.Tensor],
        *,
        pool_size: int,
        batch: int,
        refresh: int,
        step: int,
    ) -> None:
        """Fill the pools as they are after `step` steps.

        Args:
            draw: makes a scene from (picture size, index).
            encode: makes tensors from (picture size, scenes), one row per scene.
            batch, refresh: rows of a batch and rows replaced after it, at `BASE_SIZE` pixels;
                larger pictures have fewer.
            step: the number of finished steps.
        """
        self._turns, self._batch, self._refresh = list(sizes), batch, refresh
        self._pools = {
            size: LatentPool(
                partial(draw, size),
                partial(encode, size),
                size=pool_size,
                num_drawn=pool_size
                + num_steps_at(size, self._turns, step) * batch_at(refresh, size),
            )
            for size in dict.fromkeys(sizes)
        }

    def sample(self, step: int, generator: torch.Generator) -> tuple[list[S], torch.Tensor]:
        """The batch of this step: scenes and their tensors.

        Afterwards, the oldest scenes of its pool are replaced.
        """
        size = self._turns[step % len(self._turns)]
        found = self._pools[size].sample(batch_at(self._batch, size), generator)
        self._pools[size].refresh(batch_at(self._refresh, size))
        return found


class LatentPool(Generic[S]):
    """`draw(index)` makes scene `index`; `encode(scenes)` gives their tensors, one row each."""

    def __init__(
        self,
        draw: Callable[[int], S],
        encode: Callable[[Sequence[S]], torch.Tensor],
        *,
        size: int,
        num_drawn: int,
    ) -> None:
        self._draw = draw
        self._encode = encode
        first = max(0, num_drawn - size)
        self._scenes: list[S] = []
        rows: list[torch.Tensor] = []
        for start in range(first, first + size, ENCODE_BATCH):
            scenes = [draw(i) for i in range(start, min(start + ENCODE_BATCH, first + size))]
            self._scenes += scenes
            rows.append(encode(scenes).half())
        # Scene i lies in row i mod size, as if the pool had rolled until here.
        self._oldest = first % size
        self._scenes = self._scenes[-self._oldest :] + self._scenes[: -self._oldest]
        self._latents = torch.cat(rows).roll(self._oldest, dims=0)
        self._next = first + size

    def __len__(self) -> int:
        return len(self._scenes)

    def refresh(self, count: int) -> None:
        """Replace the oldest `count` scenes with the next of the stream."""
        scenes = [self._draw(self._next + i) for i in range(count)]
        self._next += count
        for scene, row in zip(scenes, self._encode(scenes).half(), strict=True):
            self._scenes[self._oldest] = scene
            self._latents[self._oldest] = row
            self._oldest = (self._oldest + 1) % len(self)

    def sample(self, count: int, generator: torch.Generator) -> tuple[list[S], torch.Tensor]:
        """Random scenes and their tensors in fp32."""
        rows = torch.randint(len(self), (count,), generator=generator)
        return [self._scenes[i] for i in rows.tolist()], self._latents[rows].float()
