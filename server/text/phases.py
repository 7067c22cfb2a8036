"""Where the time of one prompt and its completions went."""

import time

from engine.contract.generate import TokenEvent
from engine.contract.phase import Phase

_WAITS = ("adapter", "structure")


class TextTimes:
    """Follows one prompt from its arrival on.

    Args:
        arrival_s: the value of `time.time()` at its arrival.

    Attributes:
        queue_s, first_token_s: times since the arrival; None until then.
    """

    def __init__(self, arrival_s: float) -> None:
        self._arrival_s = arrival_s
        self.queue_s: float | None = None
        self.first_token_s: float | None = None
        self._in_engine: list[Phase] = []

    def note(self, event: TokenEvent) -> None:
        """Note what the engine tells of phases."""
        if event.queue_time_s is not None:
            self.queue_s = event.queue_time_s
        self._in_engine.extend(event.phases)

    def note_first_token(self) -> None:
        self.first_token_s = time.time() - self._arrival_s

    @property
    def prefill_s(self) -> float | None:
        """The time from the queue to the first token; None if there is none."""
        if self.first_token_s is None or self.queue_s is None:
            return None
        return max(0.0, self.first_token_s - self.queue_s)

    @property
    def decode_s(self) -> float | None:
        """The time since the first token; None if there is none."""
        if self.first_token_s is None:
            return None
        return time.time() - self._arrival_s - self.first_token_s

    def whole(self, name: str, num_tokens: int) -> Phase:
        """All phases, once the completions have ended.

        Args:
            num_tokens: the number of tokens that were generated.
        """
        total_s = time.time() - self._arrival_s
        first_s = total_s if self.first_token_s is None else self.first_token_s
        # The engine's clock may be ahead of ours, and it counts from a little earlier.
        queue_s = total_s if self.queue_s is None else min(self.queue_s, first_s)
        phases = [self._part("queue", 0.0, queue_s, *_WAITS)]
        if self.queue_s is not None:
            phases.append(self._part("prefill", queue_s, first_s, "prefill"))
        if self.first_token_s is not None:
            phases.append(self._part("decode", first_s, total_s, "recompute", tokens=num_tokens))
        return Phase(name, self._arrival_s, total_s, parts=tuple(phases))

    def _part(self, name: str, start_s: float, end_s: float, *inner: str, tokens: int = 0) -> Phase:
        parts = tuple(phase for phase in self._in_engine if phase.name in inner)
        if name == "prefill":
            tokens = sum(phase.num_tokens for phase in parts)
            parts = tuple(Phase("chunk", p.start_s, p.duration_s, p.num_tokens) for p in parts)
        return Phase(name, self._arrival_s + start_s, max(0.0, end_s - start_s), tokens, parts)
