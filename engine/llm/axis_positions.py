"""The positions of prompts in which pictures have a height and a width."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.contract.prompt_states import StatePart


def axis_positions(parts: Sequence[StatePart], start: int, end: int) -> NDArray[np.int64] | None:
    """The positions of the rows `start .. end` of a text in time, height and width, [3, R]; None if
    the positions of all rows are their numbers.

    The rows of a picture have one time, and those of a text equal positions along all axes. A text
    continues where the longer side of a picture ends. Paper: Qwen2-VL, Wang et al. 2024,
    arXiv:2409.12191, section 2.1.

    Args:
        parts: the parts of the text that are states.
    """
    if not any(part.has_axes for part in parts):
        return None
    rows = np.arange(start, end)
    found = np.tile(rows, (3, 1))
    for part in parts:
        if not part.has_axes or not part.columns or part.start >= end:
            continue
        inside = slice(max(part.start - start, 0), max(part.end - start, 0))
        if inside.stop:
            at = rows[inside] - part.start
            found[:, inside] += np.stack((np.zeros_like(at), *np.divmod(at, part.columns))) - at
        found[:, inside.stop :] -= part.length - part.num_positions
    return found
