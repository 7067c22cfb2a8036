"""Keeps the states of prompts' parts on the device, and puts them in the rows of a step."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from engine.contract.prompt_states import StatePart
from engine.errors import InvariantViolation
from engine.llm.decision import AdvancedPart, StateRows
from engine.models.forward_context import RowStates
from engine.models.picture_encoder import Encoding, PictureEncoder, run_slices
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
        self._begun: dict[bytes, Encoding] = {}
        """Parts that do not have all of their slices yet."""

    def change(
        self,
        dropped: Iterable[bytes],
        encoded: Iterable[StatePart],
        advanced: AdvancedPart | None = None,
    ) -> None:
        """Drop states, then make others: one part at a time, so that the memory of one is
        enough."""
        for digest in dropped:
            self._states.pop(digest, None)
            self._begun.pop(digest, None)
        for part in encoded:
            self._encode(part)
        if advanced is not None:
            self._encode(advanced.part, advanced.num_slices)

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

    @torch.inference_mode()
    def _encode(self, part: StatePart, num_slices: int | None = None) -> None:
        """Compute some slices of a part, by default all that are left."""
        encoding = self._begun.pop(part.digest, None) or self._begin(part)
        states = run_slices(encoding, num_slices)
        if states is None:
            self._begun[part.digest] = encoding
            return
        if len(states) != part.num_states:
            raise InvariantViolation(
                f"the encoder made {len(states)} states for {part.num_states} rows"
            )
        # A copy of its own, as a view would keep the memory of what it is cut from.
        self._states[part.digest] = states.clone()

    def _begin(self, part: StatePart) -> Encoding:
        if self._encoder is None:
            raise InvariantViolation("a prompt has pictures, but this model takes none")
        pixels = np.frombuffer(bytearray(part.content), dtype=np.uint8).reshape(*part.size, 3)
        return self._encoder.begin(to_device([pixels], self._device)[0], part.shape)
