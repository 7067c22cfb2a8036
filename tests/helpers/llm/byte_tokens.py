"""A vocabulary in which each byte is a token, for grammars that are tried text by text."""

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from engine.contract.structure import Structure
from engine.llm.structure.grammar_text import grammar_text
from engine.llm.structure.matcher import matcher_of
from engine.llm.structure.token_names import TokenNames

END = 256


class Bytes:
    """A token per byte."""

    eos_token_id = END
    bos_token_id = None
    special_token_ids = (END,)
    tokens = (*tuple(bytes([i]) for i in range(256)), b"<end>")

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


TOKENS = LLTokenizer(TokenizerWrapper(Bytes()), n_vocab=END + 1, eos_token=[END])


def matcher(structure: Structure) -> LLMatcher:
    return matcher_of(structure, grammar_text(structure, TokenNames()), TOKENS)


def allows(made: LLMatcher, text: str) -> bool:
    """Whether the text may be written and end there."""
    written = list(text.encode())
    taken = made.try_consume_tokens(written) == len(written) and made.is_accepting()
    made.reset()
    return taken
