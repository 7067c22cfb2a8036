"""Reads SentencePiece's `tokenizer.model`, a protobuf message, for folders without tokenizer.json.

It reads only what Llama's kind of tokenizer needs: BPE without text normalisation. No served family
uses Unigram models or SentencePiece's normalisation.

Format: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RawTokenizer

from engine.errors import CorruptFile, EngineError, UnsupportedArchitecture
from engine.files.checkpoint_files import read_bounded
from engine.text.spm_tokenizer import SpacePrefix, build_spm_tokenizer
from engine.text.vocabulary import TokenType, Vocabulary

_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_TYPE = 1, 2, 3
_MODEL_TYPE, _BPE = 3, 2
_NAMED_IDS = {
    "unk_token": (40, 0),
    "bos_token": (41, 1),
    "eos_token": (42, 2),
    "pad_token": (43, -1),
}
"""The field of the trainer's settings and its default, by token name."""
_MAX_BYTES = 64 << 20
"""The largest file, ten times the size of vocabularies of a quarter of a million pieces."""
_CHARSMAP, _ADDS_PREFIX, _SQUEEZES_SPACES = 2, 3, 4


def read_sentencepiece_model(path: Path, *, legacy: bool) -> tuple[RawTokenizer, dict[str, str]]:
    """Return the tokenizer and its special tokens by name.

    Args:
        legacy: as in tokenizer_config.json: whether special tokens are also followed by a space.

    Raises:
        CorruptFile: the file is damaged.
        UnsupportedArchitecture: it is a Unigram model, or one that normalises text.
    """
    try:
        return _create(*_read(read_bounded(path, _MAX_BYTES)), legacy)
    except EngineError:
        raise
    except Exception as error:
        # Damage can cause any error, here or in the library, which raises plain Exception.
        raise CorruptFile("tokenizer.model is damaged; fetch it again") from error


def _create(
    vocabulary: Vocabulary, trainer: dict[int, Any], normalizer: dict[int, Any], legacy: bool
) -> tuple[RawTokenizer, dict[str, str]]:
    if trainer.get(_MODEL_TYPE, 1) != _BPE:
        raise _unsupported("is not of type BPE")
    if normalizer.get(_CHARSMAP) or normalizer.get(_SQUEEZES_SPACES, 1):
        raise _unsupported("normalises text")
    prefix: SpacePrefix = "every" if legacy else "first"
    raw = build_spm_tokenizer(
        vocabulary, prefix=prefix if normalizer.get(_ADDS_PREFIX, 1) else "none"
    )
    vocabulary.add_whole_tokens(raw)
    tokens = {
        name: vocabulary.token(_signed(trainer.get(field, default)))
        for name, (field, default) in _NAMED_IDS.items()
    }
    return raw, {name: token for name, token in tokens.items() if token is not None}


def _unsupported(what: str) -> UnsupportedArchitecture:
    return UnsupportedArchitecture(
        f"tokenizer.model {what}, which is not supported; create a tokenizer.json from it with "
        f"transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
    )


def _read(data: bytes) -> tuple[Vocabulary, dict[int, Any], dict[int, Any]]:
    tokens, types, scores = [], [], []
    settings: dict[int, dict[int, Any]] = {_TRAINER: {}, _NORMALIZER: {}}
    for field, value in _fields(data):
        if field == _PIECES:
            piece = dict(_fields(value))
            tokens.append(piece[_PIECE_TEXT].decode())
            types.append(piece.get(_PIECE_TYPE, TokenType.NORMAL))
            scores.append(struct.unpack("<f", piece.get(_PIECE_SCORE, bytes(4)))[0])
        elif field in settings:
            settings[field] = dict(_fields(value))
    return Vocabulary(tokens, types, scores), settings[_TRAINER], settings[_NORMALIZER]


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field: an int, or bytes for everything that has a length."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        wire_type = key & 7
        if wire_type == 0:
            value, position = _varint(data, position)
            yield key >> 3, value
            continue
        if wire_type == 2:
            size, position = _varint(data, position)
        else:
            size = {1: 8, 5: 4}.get(wire_type, len(data) + 1)
        if position + size > len(data):
            raise ValueError("a field ends after the file")
        yield key >> 3, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number is too long")


def _signed(value: int) -> int:
    """Convert a number from two's complement of 64 bits, in which negative ones are written."""
    return value - (1 << 64) if value >> 63 else value
