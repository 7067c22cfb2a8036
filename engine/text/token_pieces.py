"""The bytes that each token stands for.

With the decoders that language models use, the text of a sequence is the UTF-8 decoding of its
tokens' bytes, one after the other. Knowing them makes streaming exact and cheap, and answers
OpenAI's `bytes` of a log-probability. `create_pieces` recognises these decoders.

    byte-level BPE   `Ġhello` → b" hello"     each character of the token is one byte
    SentencePiece    `▁hello` → b" hello"     plain text, `<0xE2>` for a byte that has no token
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import Tokenizer as RawTokenizer

ToBytes = Callable[[str], bytes]

_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
_MAX_ID = (1 << 32) - 1


class TokenPieces(dict[int, bytes]):
    """The bytes of each token, computed when they are first needed. Ids without a token have
    none."""

    def __init__(self, raw: RawTokenizer, to_bytes: ToBytes, *, strips_space: bool) -> None:
        super().__init__()
        self._raw = raw
        self._to_bytes = to_bytes
        self.strips_space = strips_space
        """Whether a space that begins the whole text is left out, because encoding has put it
        there."""

    def __missing__(self, token_id: int) -> bytes:
        token = self._raw.id_to_token(token_id) if 0 <= token_id <= _MAX_ID else None
        if token is None:
            return b""
        piece = self[token_id] = self._to_bytes(token)
        return piece


def create_pieces(raw: RawTokenizer) -> TokenPieces | None:
    """Create the table for this tokenizer, or return None if its decoder looks at a token's
    neighbours."""
    decoder = json.loads(raw.decoder.__getstate__()) if raw.decoder is not None else {}
    if decoder.get("type") == "ByteLevel":
        return TokenPieces(raw, _byte_level, strips_space=False)
    steps = decoder["decoders"] if decoder.get("type") == "Sequence" else [decoder]
    return _plain_pieces(raw, steps)


def _plain_pieces(raw: RawTokenizer, steps: list[dict[str, Any]]) -> TokenPieces | None:
    replacements: list[tuple[str, str]] = []
    has_bytes = is_fused = strips_space = False
    for step in steps:
        match step:
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if not (
                has_bytes or is_fused
            ):
                replacements.append((old, new))
            case {"type": "ByteFallback"} if not is_fused:
                has_bytes = True
            case {"type": "Fuse"}:
                is_fused = True
            case {"type": "Strip", "content": " ", "start": 1, "stop": 0} if is_fused:
                strips_space = True
            case _:
                return None

    def to_bytes(token: str) -> bytes:
        for old, new in replacements:
            token = token.replace(old, new)
        byte = _BYTE_TOKEN.fullmatch(token) if has_bytes else None
        return bytes.fromhex(byte[1]) if byte else token.encode()

    return TokenPieces(raw, to_bytes, strips_space=strips_space)


def spelled_pieces(entries: Sequence[str], text: str) -> list[bytes] | None:
    """Return the bytes of a text's tokens, where only the vocabulary's spelling of them is known.

    Returns:
        None if the tokens give the text in neither of the two ways above.
    """
    data = text.encode()
    for to_bytes in (_byte_level, _sentencepiece):
        pieces = [to_bytes(entry) for entry in entries]
        if b"".join(pieces) in (data, b" " + data):
            return pieces
    return None


def _sentencepiece(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes.fromhex(byte[1]) if byte else token.replace("▁", " ").encode()


def _byte_level(token: str) -> bytes:
    """Return the bytes of a token; one with any other character, such as an added one, stands for
    its own text."""
    try:
        return bytes([BYTE_ALPHABET[char] for char in token])
    except KeyError:
        return token.encode()


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's printable stand-ins: visible Latin-1 unchanged, the rest from U+0100
    upwards."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}


BYTE_ALPHABET = _byte_alphabet()
