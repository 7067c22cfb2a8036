"""Keeps the states of prompts' parts on the device, and puts them in the rows of a step."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from engine.contract.prompt_states import StatePart
from engine.errors import InvariantViolation
from engine.llm.decision import StateRows
from engine.models.forward_context import RowStates
from engine.models.picture_encoder import PictureEncoder
from kernels.shared.transfer import to_device


class PartStates:
    """States by the digest of their content. The scheduler decides which are kept
    (`engine.llm.kept_states`).

    Args:
        encoder: makes them; None if the model takes no pictures.
    """

    def __init__(self, encoder: PictureEncoder | None, device: torch.device) -> None:
        self._encoder = encoder
        self._device = device
        self._states: dict[bytes, Tensor] = {}

    def change(self, dropped: Iterable[bytes], encoded: Iterable[StatePart]) -> None:
        """Drop states, then make others: one part at a time, so that the memory of one is
        enough."""
        for digest in dropped:
            self._states.pop(digest, None)
        for part in encoded:
            self._states[part.digest] = self._encode(part)

    def of(self, rows: Sequence[StateRows]) -> RowStates | None:
        """The states of a step's rows; None if no row is a state."""
        if not rows:
            return None
        places = [np.arange(one.num_rows, dtype=np.int64) + one.first_row for one in rows]
        values = [
            self._states[one.digest][one.first_state : one.first_state + one.num_rows]
            for one in rows
        ]
        return RowStates(to_device([np.concatenate(places)], self._device)[0], torch.cat(values))

    def _encode(self, part: StatePart) -> Tensor:
        if self._encoder is None:
            raise InvariantViolation("a prompt has pictures, but this model takes none")
        side = math.isqrt(len(part.content) // 3)
        pixels = np.frombuffer(bytearray(part.content), dtype=np.uint8).reshape(1, side, side, 3)
        states = self._encoder.encode(to_device([pixels], self._device)[0])[0]
        if len(states) != part.length:
            raise InvariantViolation(
                f"the encoder made {len(states)} states for {part.length} rows"
            )
        # A copy of its own, as a slice would keep the memory of what it is cut from.
        return states.clone()
