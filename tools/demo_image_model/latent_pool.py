"""A rolling store of encoded scenes, so that a training step need not render and encode its batch.

Scene `i` of the endless stream sits at `i mod size`; each step replaces the oldest few. The store
follows from its seed and the number of scenes drawn, so a resumed run rebuilds it.
"""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

S = TypeVar("S")

ENCODE_BATCH = 64


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
        self._latents = torch.cat(rows)
        # Row r holds scene first + r; make the oldest the next to go.
        self._oldest = 0
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
