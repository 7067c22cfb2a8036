"""Finds the tokens in which a string can occur: those that contain it, and those that begin it.

This serves searches in token ids while they are drawn, without text. The vocabulary is searched as
one array of bytes; a string takes a few passes over it, some milliseconds.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.contract.sampling_params import TokenPattern
from engine.text.tokenizer import Tokenizer

MAX_TAIL = 20
"""The most tokens of a tail; only the first tokens of a longer one are compared, as in
llama.cpp."""

_BREAK = b"\xff"
"""The separator of two tokens, a byte that UTF-8 never contains."""

Ids = NDArray[np.int32]


class VocabularySearch:
    """The bytes of all tokens. Thread-safe; takes a third of a second to make for 150,000
    tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        pieces = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
        self._ends = np.cumsum([len(piece) + 1 for piece in pieces]) - 1
        self._octets = np.frombuffer(_BREAK.join([*pieces, b""]), dtype=np.uint8)

    def patterns(self, strings: Sequence[str]) -> tuple[TokenPattern, ...]:
        """Return all ways in which tokens can spell the strings, with any text before and after.

            " world:"          contains ":", so it is a head without a tail
            "x\\n" "User"      ends with a beginning of "\\nUser": a head, with the rest as its tail
            "User" ":" "\\n"   as the tokenizer writes "User:\\n" by itself

        Tails are the tokens of the rest by itself; in a text the rest may have other tokens.
        """
        heads: dict[tuple[int, ...], list[Ids]] = {}
        for string in dict.fromkeys(strings):
            self._add(heads, string)
        return tuple(
            TokenPattern(np.unique(np.concatenate(ids)).astype("<i4").tobytes(), tail)
            for tail, ids in heads.items()
        )

    def _add(self, heads: dict[tuple[int, ...], list[Ids]], string: str) -> None:
        own = self._spelled(string)
        if own:
            heads.setdefault(tuple(own[1 : MAX_TAIL + 1]), []).append(np.array(own[:1], np.int32))
        data = string.encode()
        whole = {len(string[:num].encode()): num for num in range(1, len(string))}
        places = np.flatnonzero(self._octets == data[0])
        for length in range(1, len(data)):
            if length in whole and (tail := self._spelled(string[whole[length] :])):
                ending = self._tokens_that_end(places + length)
                if len(ending):
                    heads.setdefault(tuple(tail[:MAX_TAIL]), []).append(ending)
            # The last byte is a separator, so no place is beyond the end.
            places = places[self._octets[places + length] == data[length]]
        if len(places):
            containing = np.searchsorted(self._ends, places).astype(np.int32)
            heads.setdefault((), []).append(containing)

    def _tokens_that_end(self, places: NDArray[np.int64]) -> Ids:
        """Return the tokens whose last byte is just before one of the places."""
        owners = np.searchsorted(self._ends, places - 1)
        ending: Ids = owners[self._ends[owners] == places].astype(np.int32)
        return ending

    def _spelled(self, string: str) -> list[int]:
        """Return the token ids of exactly this text; none if the tokenizer adds to any text it
        gets.

        SentencePiece puts a space before a text, but not before its second line.
        """
        for before in ("", "\n"):
            ids = self._tokenizer.encode(before + string, add_special_tokens=False)
            pieces = [self._tokenizer.token_bytes(token_id) for token_id in ids]
            rest, size = b"".join(pieces), len(string.encode())
            while len(rest) > size and pieces:
                rest = rest[len(pieces.pop(0)) :]
            if rest == string.encode():
                return ids[len(ids) - len(pieces) :]
        return []
