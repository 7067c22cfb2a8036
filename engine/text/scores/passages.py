"""A text as llama.cpp's `llama-perplexity` takes it, so that numbers compare.

    text       [ passage 0 | passage 1 | … | rest, left out ]
    passage    [ start token in place of the first | read only | scored       ]
                 0                                   1 … n/2     n/2 + 1 … n-1

The start token is what the model's tokenizer puts before a text, if anything. What is scored has at
least half a passage before it.

Source: https://github.com/ggml-org/llama.cpp/tree/master/tools/perplexity
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from engine.errors import InvalidParameter
from engine.text.scores.token_classes import TokenClass, token_classes


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredFile:
    """A text, and what of it is scored."""

    path: Path
    context: int
    """Tokens of a passage."""
    passages: int | None = None
    """Only the first so many."""

    def read(self) -> str:
        """The text without the line end behind its last line.

        Raises:
            InvalidParameter: it cannot be read, is no UTF-8 or empty.
        """
        try:
            text = self.path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise InvalidParameter("the text is not UTF-8; convert it") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise InvalidParameter(f"the text cannot be read: {reason}") from None
        if not text.strip():
            raise InvalidParameter("the text is empty; give one of several thousand words")
        return text.removesuffix("\n")


class TokenFacts(NamedTuple):
    """What is known of a scored token before any model scores it."""

    num_bytes: int
    token_class: TokenClass


@dataclass(frozen=True, slots=True)
class Passage:
    """`token_ids` are what the model reads; `facts` are those of the scored ones, None where the
    tokens' bytes are not known."""

    token_ids: list[int]
    facts: list[TokenFacts] | None


def first_scored(size: int) -> int:
    """Of a passage's tokens; all behind it are scored, too."""
    return size // 2 + 1


def start_token(with_special: Sequence[int], without: Sequence[int]) -> int | None:
    """The token that a tokenizer puts before texts, from those of one text; None: it puts none."""
    has_start = list(with_special[1 : len(without) + 1]) == list(without)
    return with_special[0] if has_start and len(with_special) > len(without) else None


def cut_passages(
    token_ids: Sequence[int],
    pieces: Sequence[bytes] | None,
    *,
    start: int | None,
    file: ScoredFile,
) -> list[Passage]:
    """The passages of a text.

    Args:
        token_ids: of the whole text, without what tokenizers add.
        pieces: their bytes; None: not known.
        start: the start token.
        file: which says how long and how many they are.

    Raises:
        InvalidParameter: the text is shorter than one passage.
    """
    # As llama.cpp does it: the start token is a token of the text, too.
    before = [] if start is None else [start]
    tokens, size = [*before, *token_ids], file.context
    count = min(len(tokens) // size, file.passages or len(tokens))
    if count == 0:
        raise InvalidParameter(
            f"the text has {len(tokens)} tokens; a passage has {size}; give a longer text or a "
            f"smaller --context"
        )
    facts = None
    if pieces is not None:
        used = [b"" for _ in before] + list(pieces[: count * size - len(before)])
        classes = token_classes(used)
        facts = [TokenFacts(len(piece), one) for piece, one in zip(used, classes, strict=True)]
    return [
        Passage(
            [*before, *tokens[at + len(before) : at + size]],
            None if facts is None else facts[at + first_scored(size) : at + size],
        )
        for at in range(0, count * size, size)
    ]
