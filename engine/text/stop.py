"""Stop strings in a growing text: finds the first one and never lets a part of one out.

Each completion has a `StopMatcher` between the detokenizer and the client.
"""

from collections.abc import Sequence

from engine.errors import InvalidParameter


class StopMatcher:
    """Passes text on, except for an end that could be the beginning of a stop string.

    The stop string that is complete first wins; of several that end at the same character, the
    longest. The answer does not depend on how the text is cut into pieces.

        stop "</end>"    text "a < b </e"    handed on "a < b "    held back "</e"

    Args:
        stop: none at all passes everything through.
        include: hand the stop string itself on too.

    Raises:
        InvalidParameter: a stop string is empty.

    Algorithm: Knuth, Morris & Pratt 1977, one automaton per stop string: linear in the text for any
    text. What is held back is always a beginning of a stop string, so it is stored as its length.
    """

    def __init__(self, stop: Sequence[str], *, include: bool = False) -> None:
        if not all(stop):
            raise InvalidParameter("stop strings must not be empty", param="stop")
        self.matched: str | None = None
        """The stop string that was found. The text ends with it; more text is ignored."""
        self._include = include
        self._automata = [_Automaton(text) for text in dict.fromkeys(stop)]
        self._longest = self._automata[0] if stop else None
        """The automaton that has matched furthest; its match is held back."""

    def add(self, text: str) -> str:
        """Take more text and return the text that may go out now, the oldest first."""
        if self._longest is None:
            return text
        if self.matched is not None:
            return ""
        held_by, num_held = self._longest, self._longest.num_read
        end = len(text)
        for automaton in self._automata:
            found = automaton.read(text, end)
            if found is not None and (found < end or self._is_better(automaton)):
                self.matched, end = automaton.text, found
        if self.matched is not None:
            num_out = num_held + end - (0 if self._include else len(self.matched))
        else:
            self._longest = max(self._automata, key=_Automaton.progress)
            num_out = num_held + len(text) - self._longest.num_read
        # At most the returned text is copied, so a long hold costs nothing per character.
        return held_by.text[: min(num_out, num_held)] + text[: max(num_out - num_held, 0)]

    def finish(self) -> str:
        """End the text and return the text that was held back, since it is not a stop string after
        all."""
        if self._longest is None or self.matched is not None:
            return ""
        held = self._longest.text[: self._longest.num_read]
        for automaton in self._automata:
            automaton.num_read = 0
        return held

    def _is_better(self, automaton: "_Automaton") -> bool:
        """Whether an automaton's match is preferred to another one that ends at the same
        character."""
        return self.matched is None or len(automaton.text) > len(self.matched)


class _Automaton:
    """Tracks how long a beginning of one stop string the text ends with."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.num_read = 0
        self._borders = _borders(text)

    def progress(self) -> int:
        return self.num_read

    def read(self, text: str, end: int) -> int | None:
        """Read `text[:end]`, or up to a match; return the place right after the match."""
        stop, borders = self.text, self._borders
        num_read, place = self.num_read, 0
        while place < end:
            if num_read == 0:
                place = text.find(stop[0], place, end)
                if place < 0:
                    break
            while num_read and stop[num_read] != text[place]:
                num_read = borders[num_read]
            if stop[num_read] == text[place]:
                num_read += 1
            place += 1
            if num_read == len(stop):
                self.num_read = num_read
                return place
        self.num_read = num_read
        return None


def _borders(text: str) -> list[int]:
    """For each length n, the longest beginning of `text[:n]`, shorter than n, that also ends it."""
    borders = [0, 0]
    length = 0
    for char in text[1:]:
        while length and text[length] != char:
            length = borders[length]
        if text[length] == char:
            length += 1
        borders.append(length)
    return borders
