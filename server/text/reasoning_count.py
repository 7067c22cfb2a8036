"""Counts the tokens of an answer that are reasoning."""

from collections import deque
from collections.abc import Iterable

from engine.text.answer_parser import AnswerParser


class ReasoningCount:
    """Counts one completion's tokens that begin before the end of the reasoning, whose markers are
    part of it. The count does not depend on the parts in which the text comes.

    Attributes:
        num_tokens: count so far; exact once the parser has the whole text.
    """

    def __init__(self, parser: AnswerParser) -> None:
        self.num_tokens = 0
        self._parser = parser
        self._starts: deque[int] = deque()

    def add(self, starts: Iterable[int]) -> None:
        """Add tokens whose text the parser has been given.

        Args:
            starts: number of characters of the text before each token.
        """
        self._starts.extend(starts)
        reach = self._parser.reasoning_reach
        while self._starts and self._starts[0] < reach:
            self._starts.popleft()
            self.num_tokens += 1
