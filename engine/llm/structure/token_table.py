"""What llguidance needs to know of a model's tokens: the bytes of each, and how a text is cut into
them."""

from dataclasses import dataclass
from pathlib import Path

from llguidance import LLTokenizer, TokenizerWrapper

from engine.errors import UnsupportedFeature
from engine.llm.structure.token_names import TokenNames
from engine.text.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True, slots=True)
class TokenTable:
    """A model's tokens and their names."""

    tokens: LLTokenizer
    names: TokenNames


def load_token_table(path: Path, vocab_size: int, eos_token_ids: tuple[int, ...]) -> TokenTable:
    """Load the token table of a checkpoint.

    Args:
        vocab_size: the number of logits per row; ids without a token are never allowed.
        eos_token_ids: the tokens that are allowed where a structured text may end.

    Raises:
        UnsupportedFeature: this model's tokens have no bytes of their own, or no token ends a text.
    """
    if not eos_token_ids:
        raise UnsupportedFeature(
            "this model has no end-of-sequence token, so it cannot give structured output; leave "
            "the structure out, or use another model"
        )
    tokenizer = load_tokenizer(path)
    if tokenizer.pieces is None:
        raise UnsupportedFeature(
            "this model's tokenizer decodes a token differently beside different neighbours, so it "
            "cannot give structured output; leave the structure out, or use another model"
        )
    ends = list(eos_token_ids)
    tokens = _Tokens(tokenizer, max(vocab_size, *(end + 1 for end in ends)), ends[0])
    special = {
        tokens.tokens[token_id].decode(errors="replace"): token_id
        for token_id in tokens.special_token_ids
        if token_id not in ends and tokens.tokens[token_id]
    }
    wrapped = TokenizerWrapper(tokens)
    num_tokens = len(tokens.tokens)
    never = frozenset(ends) | {i for i, octets in enumerate(tokens.tokens) if not octets}
    names = TokenNames(special, lambda text: tokens(text.encode()), num_tokens, never)
    return TokenTable(LLTokenizer(wrapped, n_vocab=num_tokens, eos_token=ends), names)


class _Tokens:
    """The tokenizer interface that `TokenizerWrapper` needs."""

    def __init__(self, tokenizer: Tokenizer, num_tokens: int, eos_token_id: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = eos_token_id
        self.bos_token_id = tokenizer.bos_token_id
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(num_tokens)]
        self.special_token_ids = sorted(i for i in tokenizer.special_token_ids if i < num_tokens)

    def __call__(self, text: bytes) -> list[int]:
        """The tokens of a forced text, as the model's tokenizer makes them."""
        ids = self._tokenizer.encode(text.decode(), add_special_tokens=False)
        written = b"".join([self.tokens[i] for i in ids])
        if written != text and written == b" " + text:
            # SentencePiece puts a space before each text.
            return ids[1:] if self.tokens[ids[0]] == b" " else []
        return ids if written == text else []
