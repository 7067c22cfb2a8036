"""Corrects an enlarged picture before it is sent, and reports on it."""

import numpy as np

from engine.contract.examination import Examination, Faithfulness
from engine.fidelity.back_projection import back_project
from engine.fidelity.consistency import Comparison
from engine.fidelity.faces import FaceGuard, find_faces
from engine.fidelity.heat_map import HeatMap
from engine.pictures.arrays import Bytes, bands, pixels_of


class Aftercare:
    """Takes the rows of a result from the top down and passes them on. With `fidelity` they wait
    for the last row, as the correction depends on all of them.

    Args:
        original: the input, `[h, w, C]`.
        height, width: the size of the result.
    """

    def __init__(self, original: Bytes, height: int, width: int, wanted: Faithfulness) -> None:
        self._original, self._wanted = original, wanted
        self._size = height, width
        self._num_taken = 0
        self._comparison = Comparison(original, height, width)
        self._heat_map = HeatMap(original, height, width) if wanted.heat_map else None
        self._num_faces: int | None = None
        self._guard: FaceGuard | None = None
        if wanted.face_guard > 0:
            faces = find_faces(original)
            self._num_faces = len(faces)
            self._guard = FaceGuard(original, faces, height, width, wanted.face_guard)
        self._held: Bytes | None = None
        if wanted.fidelity > 0:
            self._held = np.empty((height, width, original.shape[2]), np.uint8)

    def take(self, rows: Bytes) -> Bytes:
        """Take the next rows `[B, W, C]` of the result; returns those that can be sent by now."""
        if self._guard is not None:
            rows = self._guarded(rows, self._guard)
        if self._held is None:
            self._examine(rows, self._num_taken)
        else:
            self._held[self._num_taken : self._num_taken + len(rows)] = rows
        self._num_taken += len(rows)
        return rows if self._held is None else rows[:0]

    def end(self) -> tuple[Bytes, Examination]:
        """After the last row: the rows that still waited, and the findings about the result."""
        assert self._num_taken == self._size[0], "rows are missing"
        held = np.empty((0, self._size[1], self._original.shape[2]), np.uint8)
        if self._held is not None:
            held = self._held
            back_project(held, self._original, self._wanted.fidelity)
            self._examine(held, 0)
        heat_map = None
        if self._heat_map is not None:
            heat_map = pixels_of(self._heat_map.picture(self._comparison.seen))
        return held, Examination(
            consistency=self._comparison.consistency(),
            num_faces=self._num_faces,
            heat_map=heat_map,
        )

    def _guarded(self, rows: Bytes, guard: FaceGuard) -> Bytes:
        parts = (
            guard.guarded(rows[band], self._num_taken + band.start)
            for band in bands(len(rows), self._size[1])
        )
        return np.concatenate([rows[:0], *parts])

    def _examine(self, rows: Bytes, start: int) -> None:
        for band in bands(len(rows), self._size[1]):
            self._comparison.add(rows[band], start + band.start)
            if self._heat_map is not None:
                self._heat_map.add(rows[band], start + band.start)
