"""Decides how far a step may go into prompts with parts that are states, and which states the
executor keeps.

The states of a part are made in the first step that needs them, and found by their content after
that. Encoding takes long: a step encodes one part while texts stream and a few otherwise, and
prompts stop before the next one. While texts stream, encoding moreover takes at most about half of
the time. States that no step has used for longest are dropped first. A prompt whose rows are
computed, or found in the prefix cache, needs no states.
"""

from collections.abc import Iterable

from engine.contract.picture_facts import PictureFacts
from engine.contract.prompt_states import StatePart
from engine.llm.decision import ScheduledSequence
from engine.llm.request import Sequence

MOST_ENCODED = 4
"""The most parts that a step encodes if it delays nobody."""


class PartsOfStep:
    """The parts that a step in the making uses.

    Args:
        most_encoded: the most parts that it encodes.
    """

    def __init__(self, most_encoded: int = MOST_ENCODED) -> None:
        self.most_encoded = most_encoded
        self.used: dict[bytes, StatePart] = {}

    def add(self, parts: Iterable[StatePart]) -> None:
        """Note that rows of these parts are in the step."""
        for part in parts:
            self.used[part.digest] = part

    def of(self, scheduled: Iterable[ScheduledSequence]) -> list[StatePart]:
        """The parts that have rows in these shares of the step."""
        if not self.used:
            return []
        digests = {rows.digest for share in scheduled for rows in share.states}
        return [part for digest, part in self.used.items() if digest in digests]


class KeptStates:
    """The digests of the states that the executor keeps, from the longest unused to the latest.

    Args:
        most: the most parts whose states are kept, at least 1.
        pictures: how the model sees pictures; None if it takes none.
    """

    def __init__(self, most: int = 1, pictures: PictureFacts | None = None) -> None:
        self.pictures = pictures
        self._most = most
        self._looks_both_ways = pictures is not None and pictures.looks_both_ways
        self._kept: dict[bytes, None] = {}
        self._lost: list[bytes] = []
        """What the executor may keep in vain, after a step that failed."""
        self._pause_s = 0.0
        """How long texts stream before they wait for an encoder again."""

    @property
    def num_uncut_rows(self) -> int:
        """The most rows that must be computed in one step."""
        return self.pictures.rows_per_crop if self.pictures and self._looks_both_ways else 1

    def most_beside_streams(self) -> int:
        """The most parts that a step may encode while texts stream."""
        return 1 if self._pause_s <= 0.0 else 0

    def note_time(self, num_encoded: int, seconds: float) -> None:
        """Note how long a step took that encoded this many parts."""
        self._pause_s = seconds if num_encoded else max(0.0, self._pause_s - seconds)

    def reach(
        self, sequence: Sequence, start: int, num_tokens: int, most: int, parts: PartsOfStep
    ) -> int:
        """Return how many tokens from `start` on a sequence takes, of the `num_tokens` that are
        meant for it.

        Args:
            most: the most tokens that it can take. If the rows of a part look both ways, they are
                computed in one step, which takes more than `num_tokens` if it must.
            parts: the parts of the step without these tokens.
        """
        end = start + num_tokens
        used = {digest: digest not in self._kept for digest in parts.used}
        for part in sequence.states_between(start, end):
            used[part.digest] = part.digest not in self._kept
            if len(used) > self._most or sum(used.values()) > parts.most_encoded:
                return max(0, part.start - start)
            if self._looks_both_ways and part.end > end:
                fits = part.start <= start and part.end <= start + most
                return part.end - start if fits else max(0, part.start - start)
        return num_tokens

    def settle(self, used: Iterable[StatePart]) -> tuple[list[bytes], list[StatePart]]:
        """Keep the states of the parts that a step uses.

        Returns:
            What the step drops and what it encodes.
        """
        encoded = []
        for part in used:
            if part.digest in self._kept:
                del self._kept[part.digest]
            else:
                encoded.append(part)
            self._kept[part.digest] = None
        dropped, self._lost = self._lost, []
        while len(self._kept) > self._most:
            oldest = next(iter(self._kept))
            del self._kept[oldest]
            dropped.append(oldest)
        return dropped, encoded

    def start_over(self) -> None:
        """Have all states made again."""
        self._lost += self._kept
        self._kept.clear()
