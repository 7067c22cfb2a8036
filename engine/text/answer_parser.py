"""Splits the text of one answer into reasoning, content and calls."""

from engine.text.answer_pieces import Arguments, CallStart, Content, Piece
from engine.text.harmony import HarmonyReader
from engine.text.reasoning import ReasoningReader
from engine.text.tool_calls.parser import ToolCallParser


class AnswerParser:
    """Splits the text of one completion. Calls are expected only after the reasoning.

    Args:
        reasoning: None if the model writes none.
        calls: None if calls are not expected.
        max_calls: the most calls; further ones are left out.
    """

    def __init__(
        self,
        reasoning: ReasoningReader | HarmonyReader | None,
        calls: ToolCallParser | None,
        max_calls: int | None = None,
    ) -> None:
        self.num_calls = 0
        self._reasoning = reasoning
        self._calls = calls
        self._max_calls = max_calls

    @property
    def reasoning_reach(self) -> int:
        """Characters of the text that are certain to be reasoning, including its markers."""
        return 0 if self._reasoning is None else self._reasoning.reach

    def add(self, text: str, *, is_last: bool) -> list[Piece]:
        """Take more text and return the pieces that are now certain; with the last text, all that
        was held back."""
        if self._reasoning is None:
            pieces: list[Piece] = [Content(text)]
        else:
            pieces = self._reasoning.add(text)
            if is_last:
                pieces += self._reasoning.finish()
        if self._calls is not None:
            pieces = [part for piece in pieces for part in self._with_calls(piece)]
            if is_last:
                pieces += self._calls.finish()
        return [piece for piece in pieces if self._is_kept(piece)]

    def _with_calls(self, piece: Piece) -> list[Piece]:
        assert self._calls is not None
        return self._calls.add(piece.text) if isinstance(piece, Content) else [piece]

    def _is_kept(self, piece: Piece) -> bool:
        match piece:
            case CallStart(index):
                if self._max_calls is not None and index >= self._max_calls:
                    return False
                self.num_calls += 1
                return True
            case Arguments(index):
                return index < self.num_calls
        return bool(piece.text)
