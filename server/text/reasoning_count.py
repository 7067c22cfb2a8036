"""How many of an answer's tokens are reasoning."""

from collections import deque
from collections.abc import Iterable

from engine.text.answer_parser import AnswerParser


class ReasoningCount:
    """Of one completion: tokens that begin before the reasoning's end, whose markers are part of
    it. The same however the text comes in parts.

    Attributes:
        num_tokens: so far; exact once the parser has the whole text.
    """

    def __init__(self, parser: AnswerParser) -> None:
        self.num_tokens = 0
        self._parser = parser
        self._starts: deque[int] = deque()

    def add(self, starts: Iterable[int]) -> None:
        """Tokens whose text the parser has been given.

        Args:
            starts: characters of the text before each.
        """
        self._starts.extend(starts)
        reach = self._parser.reasoning_reach
        while self._starts and self._starts[0] < reach:
            self._starts.popleft()
            self.num_tokens += 1
