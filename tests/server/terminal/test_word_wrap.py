"""Text that streams in is broken between words, wherever the pieces end."""

import random
import textwrap

import pytest
from rich.cells import cell_len

from server.terminal.word_wrap import WordWrap

PROSE = (
    "The quick brown fox jumps over the lazy dog while seventeen extraordinarily "
    "well-behaved penguins watch from a distance."
)


def wrapped(text: str, width: int, seed: int = 0) -> str:
    """`text` in pieces of one to nine characters."""
    dice = random.Random(seed)
    wrap = WordWrap(lambda: width)
    shown = ""
    while text:
        size = dice.randint(1, 9)
        shown += wrap.feed(text[:size])
        text = text[size:]
    return shown + wrap.flush()


@pytest.mark.parametrize("width", [14, 20, 33, 80, 200])
@pytest.mark.parametrize("seed", range(3))
def test_it_wraps_as_the_standard_library_does(width: int, seed: int) -> None:
    expected = textwrap.fill(PROSE, width, break_long_words=False, break_on_hyphens=False)
    assert wrapped(PROSE, width, seed) == expected


def test_words_are_never_cut_nor_lost() -> None:
    long = "a" * 50
    assert wrapped(f"see {long} there", 20) == f"see\n{long}\nthere"


def test_line_ends_and_indents_stay() -> None:
    text = "- one\n  - two\n\n\tthree  \nfour"
    assert wrapped(text, 20) == text


def test_code_keeps_its_lines() -> None:
    code = "x = some_function(with_arguments, and_more, and_more)"
    text = f"Here:\n```python\n{code}\n```\nand then some more words follow here"
    lines = wrapped(text, 20).split("\n")
    assert code in lines
    assert lines[4:] == ["and then some more", "words follow here"]


def test_scripts_without_spaces_break_anywhere_and_are_shown_at_once() -> None:
    wrap = WordWrap(lambda: 10)
    assert wrap.feed("日本") == "日本"
    shown = "日本" + wrap.feed("語の文章は長い") + wrap.flush()
    assert all(cell_len(line) <= 10 for line in shown.split("\n"))
    assert shown.replace("\n", "") == "日本語の文章は長い"


def test_a_word_is_shown_as_soon_as_it_is_whole() -> None:
    wrap = WordWrap(lambda: 80)
    assert wrap.feed("Hel") == ""
    assert wrap.feed("lo wor") == "Hello"
    assert wrap.feed("ld\n") == " world\n"
    assert wrap.flush() == ""
