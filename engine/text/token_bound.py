"""The fewest tokens that a text can have, from its characters alone.

A token stands for a stretch of the text, so a text needs at least as many tokens as its letters
divided by the most letters of any token; the same holds for digits, white space, other ASCII and
the rest. Counting takes a nanosecond per character, tokenising a microsecond and 300 bytes.

Characters that a tokenizer may drop, or join without limit, are not counted: bytes that its
vocabulary lacks, and white space beside special tokens that swallow it. Where nothing is certain,
the bound is 0.
"""

import json
import string
from collections.abc import Iterable, Iterator
from typing import Any

from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models

from engine.text.gguf_pre_tokenizers import KNOWN_CUTS
from engine.text.token_pieces import BYTE_ALPHABET

_DIGITS = string.digits.encode()
_LETTERS = string.ascii_letters.encode()
_WHITE = bytes([*range(9, 14), *range(28, 33)])
_BEYOND = bytes(range(128, 256))
_OTHER = bytes(b for b in range(128) if b not in _DIGITS + _LETTERS + _WHITE)
_EVERYTHING = bytes(range(256))

_UNICODE_FORMS = frozenset(("NFC", "NFD", "NFKC", "NFKD", "Lowercase"))
_SHRINKING = 4
"""The most by which normalisations shorten text. They leave ASCII unchanged and shorten other text
to a quarter of its UTF-8 at most: a bold mathematical letter of 4 bytes becomes a plain one, three
Hangul letters of 9 bytes a syllable of 3."""
_SPACE = "▁"
_UNKNOWN_CHAR = b"\xff"
_PIECE_CHARS = 1 << 18
"""Characters per piece, which take about a millisecond to count."""


class TokenBound:
    """The token bound of one tokenizer. Thread-safe.

    Attributes:
        is_known: whether there is a bound.
        max_units: the most bytes (with SentencePiece, characters) that a token stands for.
    """

    def __init__(self, raw: RawTokenizer) -> None:
        steps = [*pipeline_steps(raw.normalizer), *pipeline_steps(raw.pre_tokenizer)]
        kinds = {step["type"] for step in steps}
        self._is_byte_level = "ByteLevel" in kinds
        self._changes_unicode = bool(kinds & _UNICODE_FORMS)
        self.max_units = 0
        self._classes: list[tuple[bytes, int]] = []
        if _is_plain_bpe(raw) and all(_keeps_text(step, self._is_byte_level) for step in steps):
            self._measure(raw)
        self.is_known = self.max_units > 0

    def at_least(self, text: str, enough: int) -> int:
        """Return the fewest tokens that the text can have, without added special tokens.

        Args:
            enough: no more is read once it is certain that there are more tokens than this.
        """
        return max(self.growing(text, enough), default=0)

    def growing(self, text: str, enough: int) -> Iterator[int]:
        """Yield the bound after each piece of the text, as far as it is certain."""
        if not self.is_known:
            return
        shrinking = _SHRINKING if self._changes_unicode and not text.isascii() else 1
        classes = self._classes if shrinking == 1 else self._classes[-1:]
        counts = [0] * len(classes)
        end = min(len(text), (enough + 1) * self.max_units * shrinking)
        for start in range(0, end, _PIECE_CHARS):
            units = self._units(text[start : min(start + _PIECE_CHARS, end)])
            for number, (delete, _) in enumerate(classes):
                counts[number] += len(units.translate(None, delete))
            yield max(
                _divide_up(count, most * shrinking)
                for count, (_, most) in zip(counts, classes, strict=True)
            )

    def _measure(self, raw: RawTokenizer) -> None:
        """Find the most units of each class in a token. The last class is everything."""
        added = raw.get_added_tokens_decoder().values()
        vocabulary = raw.get_vocab(with_added_tokens=False)
        countable = bytes(self._countable(vocabulary, raw.model.byte_fallback))
        if any(token.lstrip or token.rstrip for token in added):
            countable = countable.translate(None, _WHITE)
        tokens = [self._token_units(token) for token in vocabulary]
        tokens += [self._units(token.content) for token in added]
        for kind in (_DIGITS, _LETTERS, _WHITE, _OTHER, _BEYOND, _EVERYTHING):
            delete = _EVERYTHING.translate(None, kind.translate(None, _without(countable)))
            most = max((len(units.translate(None, delete)) for units in tokens), default=0)
            self._classes.append((delete, max(1, most)))
            self.max_units = most

    def _units(self, text: str) -> bytes:
        """Return one byte for each byte, or for each character with SentencePiece."""
        if self._is_byte_level:
            return text.encode(errors="surrogatepass")
        text = text.replace(_SPACE, " ")
        ascii_text = text.encode("ascii", "ignore")
        return ascii_text + _UNKNOWN_CHAR * (len(text) - len(ascii_text))

    def _token_units(self, token: str) -> bytes:
        if not self._is_byte_level:
            return self._units(token)
        try:
            return bytes([BYTE_ALPHABET[char] for char in token])
        except KeyError:
            return token.encode()

    def _countable(self, vocabulary: dict[str, int], has_bytes: bool) -> Iterator[int]:
        """Yield the units that cannot vanish: each is a token of its own if it is not merged."""
        if self._is_byte_level:
            yield from (byte for char, byte in BYTE_ALPHABET.items() if char in vocabulary)
            return
        fallback = {b for b in range(256) if has_bytes and f"<0x{b:02X}>" in vocabulary}
        for byte in range(128):
            char = _SPACE if byte == ord(" ") else chr(byte)
            if char in vocabulary or byte in fallback:
                yield byte
        if fallback.issuperset({*range(0x80, 0xC0), *range(0xC2, 0xF5)}):
            yield _UNKNOWN_CHAR[0]


def pipeline_steps(component: Any) -> list[dict[str, Any]]:
    """Return the parts of a normaliser or pre-tokenizer, in order, as tokenizer.json describes
    them."""
    if component is None:
        return []
    return list(_flatten(json.loads(component.__getstate__())))


def _flatten(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if state.get("type") != "Sequence":
        yield state
        return
    parts: Iterable[dict[str, Any]] = state.get("normalizers") or state.get("pretokenizers") or ()
    for part in parts:
        yield from _flatten(part)


def _is_plain_bpe(raw: RawTokenizer) -> bool:
    """Whether tokens are stretches of the text. WordPiece makes one token of any unknown word."""
    model = raw.model
    return (
        isinstance(model, models.BPE)
        and not model.dropout
        and not model.continuing_subword_prefix
        and not model.end_of_word_suffix
    )


def _keeps_text(step: dict[str, Any], is_byte_level: bool) -> bool:
    """Whether a step of the pipeline neither drops nor joins characters."""
    match step:
        case {"type": "Split", "behavior": "Removed", "invert": True, "pattern": {"Regex": regex}}:
            return regex in KNOWN_CUTS  # they match everything and keep it
        case {"type": "Split" | "Punctuation", "behavior": "Removed"}:
            return False
        case {"type": "Split" | "Punctuation" | "Digits" | "ByteLevel" | "UnicodeScripts"}:
            return True
        case {"type": "Metaspace", "replacement": "▁"} | {"type": "Prepend", "prepend": "▁"}:
            return not is_byte_level
        case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
            return not is_byte_level
        case {"type": str(kind)}:
            return kind in _UNICODE_FORMS
    return False


def _without(countable: bytes) -> bytes:
    return _EVERYTHING.translate(None, countable)


def _divide_up(count: int, divisor: int) -> int:
    return -(-count // divisor)
