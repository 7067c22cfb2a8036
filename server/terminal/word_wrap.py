"""Breaks lines between words while a text streams in.

A word is held back until it is complete, for a token or two. Blocks of code keep their lines.
"""

from collections.abc import Callable, Iterator

from rich.cells import cell_len

_FENCE = "```"


class WordWrap:
    """The line breaks of one text.

    Args:
        width: returns the cells of a line. It is called for each word, because a window can change
            its size.
    """

    def __init__(self, width: Callable[[], int]) -> None:
        self._width = width
        self._column = 0
        self._spaces = ""
        self._word = ""
        self._line = ""
        """The current line as it came, to recognise a fence."""
        self._is_code = False

    def feed(self, piece: str) -> str:
        """The part of the text that can be shown now."""
        return "".join(part for character in piece for part in self._take(character))

    def flush(self) -> str:
        """The rest, at the text's end."""
        return self._place()

    def _take(self, character: str) -> Iterator[str]:
        if character == "\n":
            yield self._place() + self._spaces + "\n"
            self._end_line()
            return
        self._line += character
        if character.isspace():
            yield self._place()
            self._spaces += character
        elif cell_len(character) == 2:  # scripts without spaces break anywhere
            yield self._place()
            self._word = character
            yield self._place()
        else:
            self._word += character

    def _place(self) -> str:
        """The word, on this line or on the next one."""
        if not self._word:
            return ""
        size = cell_len(self._spaces) + cell_len(self._word)
        fits = self._is_code or self._column == 0 or self._column + size <= self._width()
        text = self._spaces + self._word if fits else "\n" + self._word
        self._column = self._column + size if fits else cell_len(self._word)
        self._spaces = self._word = ""
        return text

    def _end_line(self) -> None:
        if self._line.lstrip().startswith(_FENCE):
            self._is_code = not self._is_code
        self._column, self._spaces, self._line = 0, "", ""
