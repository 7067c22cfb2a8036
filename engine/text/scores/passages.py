"""A text cut as llama.cpp's `llama-perplexity` cuts it, so that results can be compared.

    text       [ passage 0 | passage 1 | … | rest, left out ]
    passage    [ start token in place of the first | read only | scored       ]
                 0                                   1 … n/2     n/2 + 1 … n-1

The start token is what the model's tokenizer puts before a text, if anything. Each scored token has
at least half a passage before it.

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
    """A text file and the part of it that is scored."""

    path: Path
    context: int
    """Tokens of a passage."""
    passages: int | None = None
    """The number of passages from the start that are scored; None for all."""

    def read(self) -> str:
        """Read the text without the line end after its last line.

        Raises:
            InvalidParameter: the file cannot be read, is not UTF-8 or is empty.
        """
        try:
            text = self.path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise InvalidParameter("the text is not UTF-8; convert it to UTF-8") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise InvalidParameter(f"the text cannot be read: {reason}") from None
        if not text.strip():
            raise InvalidParameter("the text is empty; give one of several thousand words")
        return text.removesuffix("\n")


class TokenFacts(NamedTuple):
    """The facts about a scored token that are independent of any model."""

    num_bytes: int
    token_class: TokenClass


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage. `token_ids` are the tokens that the model reads; `facts` are those of the scored
    tokens, or None where the tokens' bytes are unknown."""

    token_ids: list[int]
    facts: list[TokenFacts] | None


def first_scored(size: int) -> int:
    """Return the index of the first scored token of a passage; all later ones are scored, too."""
    return size // 2 + 1


def start_token(with_special: Sequence[int], without: Sequence[int]) -> int | None:
    """Return the token that a tokenizer puts before texts, found from the tokens of one text; None
    without one."""
    has_start = list(with_special[1 : len(without) + 1]) == list(without)
    return with_special[0] if has_start and len(with_special) > len(without) else None


def cut_passages(
    token_ids: Sequence[int],
    pieces: Sequence[bytes] | None,
    *,
    start: int | None,
    file: ScoredFile,
) -> list[Passage]:
    """Cut a text into passages.

    Args:
        token_ids: token ids of the whole text, without added special tokens.
        pieces: their bytes; None if unknown.
        start: the start token.
        file: gives the length and number of passages.

    Raises:
        InvalidParameter: the text is shorter than one passage.
    """
    # As in llama.cpp, the start token also counts as a token of the text.
    before = [] if start is None else [start]
    tokens, size = [*before, *token_ids], file.context
    count = min(len(tokens) // size, file.passages or len(tokens))
    if count == 0:
        raise InvalidParameter(
            f"the text has {len(tokens)} tokens and must have at least one passage of {size}; give "
            f"a longer text or a smaller --context"
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
