"""A token list with types and scores, as GGUF and SentencePiece files hold it."""

from collections.abc import Container
from dataclasses import dataclass
from enum import IntEnum

from tokenizers import AddedToken
from tokenizers import Tokenizer as RawTokenizer

from engine.errors import CorruptFile


class TokenType(IntEnum):
    """SentencePiece's numbers of token types, which GGUF uses too."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A vocabulary indexed by token id: `tokens` are distinct; `types` and `scores` have the same
    length."""

    tokens: list[str]
    types: list[int]
    scores: list[float]

    def __post_init__(self) -> None:
        if not self.tokens or not len(self.tokens) == len(self.types) == len(self.scores):
            raise CorruptFile(
                f"the vocabulary has {len(self.tokens)} tokens, {len(self.types)} types and "
                f"{len(self.scores)} scores; fetch the file again"
            )
        if len(set(self.tokens)) != len(self.tokens):
            raise CorruptFile("the vocabulary has a token twice; fetch the file again")

    def of_type(self, types: Container[int]) -> list[str]:
        return [t for t, kind in zip(self.tokens, self.types, strict=True) if kind in types]

    def token(self, token_id: int | None) -> str | None:
        """Return a token, or None for an id that is missing or out of range, as files state it for
        a token that does not exist."""
        if token_id is None or not 0 <= token_id < len(self.tokens):
            return None
        return self.tokens[token_id]

    def add_whole_tokens(self, raw: RawTokenizer, special: Container[str] = ()) -> None:
        """Match control and user-defined tokens whole wherever they are in a text.

        Args:
            special: user-defined tokens to treat like control tokens, which decoding leaves out.
        """
        control = self.of_type((TokenType.CONTROL, TokenType.UNKNOWN))
        user_defined = self.of_type((TokenType.USER_DEFINED,))
        control += [token for token in user_defined if token in special]
        raw.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
        raw.add_tokens([AddedToken(t, normalized=False) for t in user_defined if t not in special])
