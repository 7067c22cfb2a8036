"""Decides how far a step may go into prompts with parts that are states, and which states the
executor keeps.

The states of a part are made before a step computes its first row, and found by their content after
that. Encoding takes long, so a step does a few slices of that work, and prompts stop before a part
that needs more. While texts stream, encoding takes about half of the time. States that no step has
used for longest are dropped first. A prompt whose rows are computed, or found in the prefix cache,
needs no states.
"""

from collections.abc import Callable, Collection, Iterable

from engine.contract.picture_facts import PictureFacts
from engine.contract.prompt_states import StatePart
from engine.llm.decision import AdvancedPart, ScheduledSequence
from engine.llm.request import Sequence

MOST_ENCODED = 4
"""The most parts that a step encodes if it delays nobody and they are not encoded in slices."""
_MOST_S = 1.0
"""How long slices may take in a step that delays nobody, as requests may come meanwhile."""


class PartsOfStep:
    """The parts that a step in the making uses.

    Args:
        most_slices: the most slices of encoding that it does; None if it delays nobody.
    """

    def __init__(self, most_slices: int | None = None) -> None:
        self.most_slices = most_slices
        self.used: dict[bytes, StatePart] = {}
        self.missed: dict[bytes, tuple[StatePart, int]] = {}
        """The parts before which prompts stop, as they have no states, and the first sequence that
        stops there."""

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
        most: the most parts of the largest size whose states are kept, at least 1.
        pictures: how the model sees pictures; None if it takes none.
        num_slices: counts the slices in which a part is encoded.
    """

    def __init__(
        self,
        most: int = 1,
        pictures: PictureFacts | None = None,
        num_slices: Callable[[StatePart], int] = lambda part: 1,
    ) -> None:
        self.pictures = pictures
        largest = 1 if pictures is None else pictures.most_states
        self._most_rows = most * largest
        self._num_slices = num_slices
        self._has_slices = pictures is not None and num_slices(pictures.largest(1)) > 1
        self._looks_both_ways = pictures is not None and pictures.looks_both_ways
        self._kept: dict[bytes, int] = {}
        """The number of states of each."""
        self._lost: list[bytes] = []
        """What the executor may keep without need, after a step that failed."""
        self._begun: bytes | None = None
        """The part that has some of its slices."""
        self._num_done = 0
        """The number of these slices."""
        self._slice_s = 0.0
        """The duration of a slice; 0 until one was measured."""
        self._plain_s = 0.0
        """The duration of the last step that did no slice."""
        self._credit_s = 0.0
        """How long slices may take, because texts have streamed without them for as long."""

    @property
    def num_uncut_rows(self) -> int:
        """The most rows that must be computed in one step."""
        return self.pictures.most_states if self.pictures and self._looks_both_ways else 1

    def most_beside_streams(self) -> int:
        """The most slices that a step may do while texts stream."""
        return int(self._credit_s / self._slice_s) if self._slice_s else 1

    def note_time(self, num_slices: int, seconds: float, *, has_rows: bool = True) -> None:
        """Note how long a step took that did this many slices.

        Args:
            has_rows: whether it computed rows, too.
        """
        if num_slices:
            spent_s = max(0.0, seconds - self._plain_s * has_rows)
            self._slice_s = spent_s / num_slices
            self._credit_s = max(0.0, self._credit_s - spent_s)
        else:
            self._plain_s = seconds
        most_s = max(self._slice_s, self._plain_s)
        self._credit_s = min(self._credit_s + min(seconds, self._plain_s), most_s)

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
        used = {digest: part.num_states for digest, part in parts.used.items()}
        num_rows, num_slices = sum(used.values()), self.num_slices(parts.used.values())
        for part in sequence.states_between(start, end):
            if part.digest not in used:
                used[part.digest] = part.num_states
                num_rows += part.num_states
                num_slices += self._num_missing(part)
            too_many = len(used) > 1 and num_rows > self._most_rows  # one part always has room
            if too_many or num_slices > self._most_slices(parts):
                parts.missed.setdefault(part.digest, (part, sequence.seq_id))
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
                if part.digest == self._begun:
                    self._begun = None
            self._kept[part.digest] = part.num_states
        dropped, self._lost = self._lost, []
        while len(self._kept) > 1 and sum(self._kept.values()) > self._most_rows:
            oldest = next(iter(self._kept))
            del self._kept[oldest]
            dropped.append(oldest)
        return dropped, encoded

    def advance(self, parts: PartsOfStep, used: Collection[StatePart]) -> AdvancedPart | None:
        """Use slices that a step leaves for a part that prompts wait for, but not its last one,
        which belongs to the step that computes its rows.

        Args:
            used: the parts that have rows in the step. Call this before `settle`.
        """
        done = {part.digest for part in used}
        missed = {digest: each for digest, each in parts.missed.items() if digest not in done}
        if not missed:
            return None
        part, seq_id = missed.get(self._begun or b"") or next(iter(missed.values()))
        left = self._most_slices(parts) - self.num_slices(used)
        num_slices = min(left, self._num_missing(part) - 1)
        if num_slices <= 0:
            return None
        if part.digest != self._begun:
            if self._begun is not None and self._begun not in done:
                self._lost.append(self._begun)
            self._begun, self._num_done = part.digest, 0
        self._num_done += num_slices
        return AdvancedPart(part, num_slices, seq_id)

    def num_slices(self, used: Iterable[StatePart]) -> int:
        """The slices that the parts of a step still need. Call this before `settle`."""
        return sum(self._num_missing(part) for part in used)

    def start_over(self) -> None:
        """Have all states made again."""
        self._lost += self._kept
        if self._begun is not None:
            self._lost.append(self._begun)
        self._kept.clear()
        self._begun = None

    def _num_missing(self, part: StatePart) -> int:
        """The number of slices that a part still needs."""
        if part.digest in self._kept:
            return 0
        done = self._num_done if part.digest == self._begun else 0
        return self._num_slices(part) - done

    def _most_slices(self, parts: PartsOfStep) -> int:
        if parts.most_slices is not None:
            return parts.most_slices
        if not self._has_slices:
            return MOST_ENCODED
        return max(1, int(_MOST_S / self._slice_s)) if self._slice_s else 1
