"""A vocabulary in which each byte is a token, for grammars that are tried text by text."""

from llguidance import LLTokenizer, TokenizerWrapper

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
