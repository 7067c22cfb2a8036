"""Text of a growing sequence of tokens, returned as soon as it is certain.

Each completion has an `IncrementalDetokenizer` in the HTTP process. The pieces that it returns join
to the result of `Tokenizer.decode` for all tokens at once, except for an unfinished character at
the end.
"""

import codecs
from collections.abc import Sequence

from engine.text.token_pieces import TokenPieces
from engine.text.tokenizer import Tokenizer

_MAX_CHAR_BYTES = 4
_NO_CHARACTER = "\ufffd"
"""The character that decoders write for invalid bytes."""
_WINDOW = 8
"""The most tokens of the prompt that can affect how the first new ones are written."""
_MAX_UNFINISHED = 16
"""The most tokens without text or a whole character that are kept until their text is certain."""


class IncrementalDetokenizer:
    """Turns tokens into text in amortised constant time per token, whatever the tokens are.

    Args:
        prompt_token_ids: the tokens before the first one. Their text is not part of the output, but
            decides whether a leading space belongs to the output, and it may end with the beginning
            of a character that the first tokens complete.
        skip_special_tokens: whether special tokens have no text.
        kept: special tokens that have text all the same.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
        kept: frozenset[int] = frozenset(),
    ) -> None:
        skipped = tokenizer.special_token_ids - kept if skip_special_tokens else frozenset[int]()
        self._text: _ByteText | _WindowText
        if tokenizer.pieces is not None:
            self._text = _ByteText(tokenizer.pieces, skipped, prompt_token_ids)
        else:
            self._text = _WindowText(tokenizer, skipped, prompt_token_ids)

    def add(self, token_ids: Sequence[int]) -> str:
        """Return the text that these tokens complete; empty while a character is unfinished."""
        return self._text.add(token_ids)

    def finish(self) -> str:
        """Return the text that was held back. An unfinished character is left out."""
        return self._text.finish()


class _ByteText:
    """The text of tokens that stand for bytes: a UTF-8 decoder that keeps unfinished characters."""

    def __init__(
        self, pieces: TokenPieces, skipped: frozenset[int], prompt_token_ids: Sequence[int]
    ) -> None:
        self._pieces = pieces
        self._skipped = skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = pieces.strips_space and not any(
            pieces[i] for i in prompt_token_ids if i not in skipped
        )
        self._decoder.decode(self._tail(prompt_token_ids))

    def add(self, token_ids: Sequence[int]) -> str:
        data = b"".join([self._pieces[i] for i in token_ids if i not in self._skipped])
        if self._at_start and data:
            self._at_start = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    def finish(self) -> str:
        self._decoder.reset()
        return ""

    def _tail(self, token_ids: Sequence[int]) -> bytes:
        """Return enough of the end to hold an unfinished character."""
        tail = b""
        for token_id in reversed(token_ids):
            if len(tail) >= _MAX_CHAR_BYTES:
                break
            if token_id not in self._skipped:
                tail = self._pieces[token_id] + tail
        return tail


class _WindowText:
    """The text for decoders that look at neighbours: a few tokens are decoded with and without the
    new ones.

    This is the method of text-generation-inference and vLLM. It is exact as long as a token's text
    depends only on the tokens returned just before it.
    """

    def __init__(
        self, tokenizer: Tokenizer, skipped: frozenset[int], prompt_token_ids: Sequence[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped = skipped
        visible = (i for i in reversed(prompt_token_ids) if i not in skipped)
        self._window = [i for i, _ in zip(visible, range(_WINDOW), strict=False)][::-1]
        self._num_shown = len(self._window)

    def add(self, token_ids: Sequence[int]) -> str:
        return "".join([self._add(i) for i in token_ids if i not in self._skipped])

    def finish(self) -> str:
        return self._show().rstrip(_NO_CHARACTER)

    def _add(self, token_id: int) -> str:
        self._window.append(token_id)
        num_new = len(self._window) - self._num_shown
        if num_new <= _MAX_UNFINISHED and self._decode(self._window).endswith(_NO_CHARACTER):
            return ""
        return self._show()

    def _show(self) -> str:
        before = self._decode(self._window[: self._num_shown])
        text = self._decode(self._window)[len(before) :]
        if text or len(self._window) > _MAX_UNFINISHED:
            self._window = self._window[self._num_shown :]
        self._num_shown = len(self._window)
        return text

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)
