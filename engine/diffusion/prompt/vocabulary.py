"""Finds words of a prompt that a model with a closed vocabulary does not know.

A tokenizer spells every word with pieces, so nothing else shows that a small model was never
trained on one: it would draw something without any warning.
"""

import re
from collections.abc import Sequence, Set

from engine.diffusion.prompt.fragments import Blend, Break, Fragment
from engine.diffusion.prompt.syntax import parse_prompt, plain_text
from engine.diffusion.prompt.text import PromptText

MAX_NAMED = 10
MAX_WORD_LENGTH = 40
"""The most words that a warning names, and the most letters of each. A prompt can have
thousands."""

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")


def unknown_words(prompt: PromptText, vocabulary: Set[str]) -> list[str]:
    """The words that are not in `vocabulary` (lower case), in lower case and in order, each once.

    Raises:
        InvalidParameter: the prompt cannot be read (`parse_prompt`).
    """
    pieces = parse_prompt(prompt.text, prompt.syntax)
    parts: Sequence[Sequence[Fragment | Break]] = [[p for p in pieces if not isinstance(p, Blend)]]
    if isinstance(pieces[0], Blend):
        parts = pieces[0].parts
    words = [word for part in parts for word in _WORD.findall(plain_text(part).lower())]
    return [word for word in dict.fromkeys(words) if word not in vocabulary]


def unknown_words_warning(words: Sequence[str]) -> str:
    """A sentence for the client that names the words, of which there must be at least one."""
    named = ", ".join(f'"{_shortened(word)}"' for word in words[:MAX_NAMED])
    more = f" and {len(words) - MAX_NAMED} more" if len(words) > MAX_NAMED else ""
    return f"this model does not know these words, so they do not help: {named}{more}"


def _shortened(word: str) -> str:
    return word if len(word) <= MAX_WORD_LENGTH else f"{word[: MAX_WORD_LENGTH - 1]}…"
