"""Which words a model with a closed vocabulary does not know, and how they are said."""

import pytest

from engine.contract.draw import PromptSyntax
from engine.diffusion.prompt.text import PromptText
from engine.diffusion.prompt.vocabulary import (
    MAX_NAMED,
    MAX_WORD_LENGTH,
    unknown_words,
    unknown_words_warning,
)

KNOWN = frozenset(["a", "red", "green", "circle", "star", "on", "the", "left"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red circle", []),
        ("", []),
        ("A RED, green circle; on-the-left!", []),
        ("two red circles", ["two", "circles"]),
        ("a Dog, a dog and 3 DOGS", ["dog", "and", "3", "dogs"]),
        ("a star's tail", ["star's", "tail"]),
        ("ein roter Kreis, 赤い円", ["ein", "roter", "kreis", "赤い円"]),
    ],
)
def test_words_that_were_never_learned(text: str, expected: list[str]) -> None:
    assert unknown_words(PromptText(text=text), KNOWN) == expected


@pytest.mark.parametrize(
    ("syntax", "text"),
    [
        (PromptSyntax.A1111, "a (red:1.3) [circle] BREAK a (shiny:0.5) star"),
        (PromptSyntax.COMFY, "a (red:1.3) circle (shiny:0.5)"),
        (PromptSyntax.COMPEL, "a red++ circle shiny--"),
        (PromptSyntax.COMPEL, '("a red circle", "a shiny star").blend(0.7, 0.3)'),
    ],
)
def test_weights_are_no_words(syntax: PromptSyntax, text: str) -> None:
    assert unknown_words(PromptText(text=text, syntax=syntax), KNOWN) == ["shiny"]


def test_every_word_is_named() -> None:
    text = unknown_words_warning(["dog", "sofa"])
    assert text.endswith(': "dog", "sofa"')


def test_a_long_prompt_makes_a_short_warning() -> None:
    words = ["x" * 3000, *(f"w{i}" for i in range(2000))]
    text = unknown_words_warning(words)
    assert f'"w{MAX_NAMED - 2}"' in text and f'"w{MAX_NAMED - 1}"' not in text
    assert f"and {len(words) - MAX_NAMED} more" in text
    assert "x" * MAX_WORD_LENGTH not in text
    assert len(text) < 300
