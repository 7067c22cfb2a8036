"""Bytes of tokens from the spelling of the vocabulary alone."""

import random

import pytest
from tokenizers import decoders

from engine.text.token_pieces import create_pieces, spelled_pieces
from tests.helpers.models.tokenizer_kinds import byte_level, sentencepiece

TEXTS = ("the fox 12\n", "ThE  größe 你好 😀 \t{x}", "▁ of ▁", "é" * 9)


def bytes_tokenizer():
    raw = byte_level(list(TEXTS))
    raw.decoder = decoders.ByteLevel()
    return raw


@pytest.mark.parametrize("build", [bytes_tokenizer, lambda: sentencepiece("first")])
def test_they_are_those_of_the_tokenizer(build):
    raw = build()
    pieces = create_pieces(raw)
    for text in (*TEXTS[:2], "".join(random.choices("the fox 你\n", k=40))):
        ids = raw.encode(text, add_special_tokens=False).ids
        entries = [raw.id_to_token(i) for i in ids]
        assert spelled_pieces(entries, text) == [pieces[i] for i in ids]


def test_a_spelling_that_makes_another_text_is_not_believed():
    raw = bytes_tokenizer()
    entries = raw.encode("the fox").tokens
    assert spelled_pieces(entries, "The fox") is None
    assert spelled_pieces([], "") == []
