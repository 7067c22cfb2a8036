"""Another size than the network's, made of its rows as they come: bicubic, smoothed where it
shrinks, as Pillow's."""

import math

import torch
from torch import Tensor

_REACH = 2.0
"""Of the kernel to each side, in pixels of the smaller of the two images."""


class RowResampler:
    """Of an image that comes from the top down.

    Args:
        given, wanted: sizes, (width, height).
    """

    def __init__(self, given: tuple[int, int], wanted: tuple[int, int]) -> None:
        self._is_needed = given != wanted
        self._across, self._down = (_Kernel(*sides) for sides in zip(given, wanted, strict=True))
        self._height = wanted[1]
        self._next = 0
        self._kept: Tensor | None = None
        self._first_kept = 0

    def add(self, rows: Tensor) -> Tensor:
        """The next rows, `[channels, rows, width]`; returns those of the result that follow, which
        may be none."""
        if not self._is_needed:
            return rows
        narrow = self._across.apply(rows.transpose(1, 2), 0, self._across.num_out).transpose(1, 2)
        kept = narrow if self._kept is None else torch.cat([self._kept, narrow], 1)
        num_known = self._first_kept + kept.shape[1]
        stop = self._next
        while stop < self._height and self._down.last(stop) < num_known:
            stop += 1
        made = self._down.apply(kept, self._next, stop, self._first_kept)
        self._next = stop
        if stop < self._height:
            unused = max(0, self._down.first(stop) - self._first_kept)
            kept = kept[:, unused:].clone()
            self._first_kept += unused
        self._kept = kept
        return made


class _Kernel:
    """From a side of one length to another length."""

    def __init__(self, num_in: int, num_out: int) -> None:
        self.num_out = num_out
        ratio = num_in / num_out
        widened = max(1.0, ratio)
        centres = (torch.arange(num_out, dtype=torch.float64) + 0.5) * ratio
        first = torch.floor(centres - _REACH * widened).long()
        at = first[:, None] + torch.arange(math.ceil(2 * _REACH * widened) + 1)
        weights = _cubic((at + 0.5 - centres[:, None]) / widened)
        weights[(at < 0) | (at >= num_in)] = 0
        self._at = at.clamp(0, num_in - 1)
        self._weights = (weights / weights.sum(1, keepdim=True)).float()

    def first(self, position: int) -> int:
        return int(self._at[position, 0])

    def last(self, position: int) -> int:
        return int(self._at[position, -1])

    def apply(self, lines: Tensor, start: int, stop: int, first_line: int = 0) -> Tensor:
        """Positions `start` to `stop`, of lines `[channels, lines, any]` from `first_line` on."""
        made = lines.new_zeros(lines.shape[0], stop - start, lines.shape[2])
        for tap in range(self._at.shape[1]):
            at, weight = self._at[start:stop, tap] - first_line, self._weights[start:stop, tap]
            made.addcmul_(lines[:, at], weight[:, None])
        return made


def _cubic(distance: Tensor) -> Tensor:
    """Keys's kernel with a = -1/2."""
    x = distance.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
