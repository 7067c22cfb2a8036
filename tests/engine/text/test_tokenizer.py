"""Encoding, decoding and the bytes of tokens, whatever the checkpoint."""

import random
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models

from engine.errors import InvalidParameter, ModelNotFound
from engine.text.token_pieces import create_pieces
from engine.text.tokenizer import Tokenizer, load_tokenizer
from engine.text.tokenizer_parts import TokenizerParts
from engine.weights.source import Checkpoint


def test_round_trip(byte_level_tokenizer: Tokenizer, nasty_texts: list[str]) -> None:
    for text in nasty_texts:
        ids = byte_level_tokenizer.encode(text)
        assert byte_level_tokenizer.decode(ids, skip_special_tokens=False) == text


def test_ids_are_those_of_plain_encode(
    byte_level_tokenizer: Tokenizer, nasty_texts: list[str]
) -> None:
    """We call another method of the library, which does not hold the interpreter's lock."""
    for text in nasty_texts:
        for add in (True, False):
            ids = byte_level_tokenizer.encode(text, add_special_tokens=add)
            assert ids == byte_level_tokenizer.raw.encode(text, add_special_tokens=add).ids


def test_joined_bytes_are_the_text(byte_level_tokenizer: Tokenizer, nasty_texts: list[str]) -> None:
    for text in nasty_texts:
        ids = byte_level_tokenizer.encode(text)
        assert b"".join(map(byte_level_tokenizer.token_bytes, ids)) == text.encode()


def test_part_of_a_character(byte_level_tokenizer: Tokenizer) -> None:
    ids = byte_level_tokenizer.encode("ꙮ")
    assert [byte_level_tokenizer.token_bytes(i) for i in ids] == [b"\xea", b"\x99", b"\xae"]
    assert byte_level_tokenizer.token_text(ids[0]) == "\ufffd"


def test_special_tokens_have_text_but_are_skipped(byte_level_tokenizer: Tokenizer) -> None:
    ids = byte_level_tokenizer.encode("a<|end|>b")
    assert byte_level_tokenizer.decode(ids) == "ab"
    assert byte_level_tokenizer.decode(ids, skip_special_tokens=False) == "a<|end|>b"
    assert byte_level_tokenizer.token_text(ids[1]) == "<|end|>"


def test_special_tokens_are_text_where_text_is_read_literally(
    byte_level_tokenizer: Tokenizer,
) -> None:
    ids = byte_level_tokenizer.encode_literally("a<|end|>b")
    assert not byte_level_tokenizer.special_token_ids & set(ids)
    assert byte_level_tokenizer.decode(ids) == "a<|end|>b"
    with_special = byte_level_tokenizer.encode("a<|end|>b")
    assert byte_level_tokenizer.special_token_ids & set(with_special)


def test_ids_without_a_token_have_no_text(byte_level_tokenizer: Tokenizer) -> None:
    size = byte_level_tokenizer.vocab_size
    assert byte_level_tokenizer.token_text(size - 1)
    assert byte_level_tokenizer.decode([size, size + 5, 2**40, -1]) == ""
    assert byte_level_tokenizer.token_bytes(size) == b""


def test_byte_level_decodes_like_the_library() -> None:
    """This includes bytes that are not UTF-8, which Rust and Python must replace alike."""
    alphabet = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet += range(0x100, 0x200 - len(alphabet))
    raw = RawTokenizer(models.BPE(vocab={chr(c): i for i, c in enumerate(alphabet)}, merges=[]))
    raw.decoder = decoders.ByteLevel()
    tokenizer = Tokenizer(TokenizerParts(raw=raw, special_tokens={}))

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.integers(0, 255), max_size=40))
    def check(ids: list[int]) -> None:
        assert tokenizer.decode(ids) == raw.decode(ids)

    check()


def test_added_tokens_outside_the_byte_alphabet(byte_level: RawTokenizer) -> None:
    byte_level.add_tokens(["☃ it", "  ", "ño"])
    tokenizer = Tokenizer(TokenizerParts(raw=byte_level, special_tokens={}))
    for text in ("☃ it", "  "):
        ids = tokenizer.encode(text)
        assert len(ids) == 1
        assert tokenizer.decode(ids) == byte_level.decode(ids) == text
    odd = tokenizer.encode("ño")  # within the alphabet, so the library takes it for bytes
    assert tokenizer.decode(odd) == byte_level.decode(odd)


def test_sentencepiece_decodes_like_the_library(sentencepiece_tokenizer: Tokenizer) -> None:
    tokenizer = sentencepiece_tokenizer

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.integers(0, tokenizer.vocab_size), max_size=30), st.booleans())
    def check(ids: list[int], skip: bool) -> None:
        text = tokenizer.decode(ids, skip_special_tokens=skip)
        if "\ufffd" not in text:
            assert text == tokenizer.raw.decode(ids, skip_special_tokens=skip)

    check()


def test_sentencepiece_keeps_what_is_valid_around_an_invalid_byte(
    sentencepiece_tokenizer: Tokenizer,
) -> None:
    ids = [sentencepiece_tokenizer.raw.token_to_id(f"<0x{b:02X}>") for b in "é".encode() + b"\xff"]
    assert sentencepiece_tokenizer.decode(ids) == "é\ufffd"


def test_one_leading_space_belongs_to_encoding(sentencepiece_tokenizer: Tokenizer) -> None:
    for text in ("x", " x", "  x", ""):
        assert sentencepiece_tokenizer.decode(sentencepiece_tokenizer.encode(text)) == text
    (token_id,) = sentencepiece_tokenizer.encode("self", add_special_tokens=False)
    assert sentencepiece_tokenizer.token_text(token_id) == " self"


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        decoders.WordPiece(),
        decoders.Metaspace(),
        decoders.Strip(" ", 1, 0),
        decoders.Sequence([decoders.ByteFallback(), decoders.Replace("▁", " ")]),
        decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 2, 0)]),
    ],
)
def test_decoders_that_look_at_neighbours_are_left_to_the_library(
    decoder: decoders.Decoder | None,
) -> None:
    raw = RawTokenizer(models.WordLevel({"▁a": 0, "##b": 1, " ": 2}, unk_token=" "))
    if decoder is not None:
        raw.decoder = decoder
    assert create_pieces(raw) is None
    tokenizer = Tokenizer(TokenizerParts(raw=raw, special_tokens={}))
    for ids in ([0, 1, 2], [2, 2], []):
        assert tokenizer.decode(ids) == raw.decode(ids)
    assert tokenizer.token_bytes(1) == raw.decode([1]).encode()


def test_lone_surrogates_are_the_callers_fault(byte_level_tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidParameter, match="surrogate"):
        byte_level_tokenizer.encode("a\ud800b")
    with pytest.raises(TypeError):
        byte_level_tokenizer.encode(b"bytes")  # type: ignore[arg-type]


def test_padding_and_truncation_of_the_checkpoint_are_ignored(byte_level: RawTokenizer) -> None:
    expected = byte_level.encode("some text that is longer").ids
    byte_level.enable_padding(length=100)
    byte_level.enable_truncation(3)
    tokenizer = Tokenizer(TokenizerParts(raw=byte_level, special_tokens={}))
    assert tokenizer.encode("some text that is longer") == expected


def test_long_texts_do_not_stop_other_threads(byte_level_tokenizer: Tokenizer) -> None:
    """Encoding a book in a thread must leave the event loop its turns."""
    text = "def f(x): return x + 1\n" * 10_000
    thread = threading.Thread(target=byte_level_tokenizer.encode, args=(text,))
    thread.start()
    num_turns = 0
    while thread.is_alive():
        time.sleep(0.001)
        num_turns += 1
    assert num_turns > 3


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound) as caught:
        load_tokenizer(tmp_path / "missing")
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.slow
def test_real_model_round_trip(smollm2: Tokenizer, nasty_texts: list[str]) -> None:
    """A few control bytes are left out, because SmolLM2 has no token for them."""
    missing = {chr(c) for c in range(128) if not smollm2.encode(chr(c))}
    assert len(missing) < 20
    for text in nasty_texts:
        kept = "".join(char for char in text if char not in missing)
        ids = smollm2.encode(kept)
        assert smollm2.decode(ids, skip_special_tokens=False) == kept
        assert b"".join(map(smollm2.token_bytes, ids)) == kept.encode()


@pytest.mark.slow
def test_real_model_decodes_like_the_library(smollm2: Tokenizer) -> None:
    for _ in range(3000):
        ids = [random.randrange(smollm2.vocab_size) for _ in range(random.randrange(20))]
        for skip in (True, False):
            ours = smollm2.decode(ids, skip_special_tokens=skip)
            assert ours == smollm2.raw.decode(ids, skip_special_tokens=skip), ids


@pytest.mark.slow
def test_loads_quickly(smollm2_checkpoint: Checkpoint) -> None:
    """The HTTP process has two seconds for everything."""
    start = time.thread_time()
    load_tokenizer(smollm2_checkpoint.path)
    assert time.thread_time() - start < 1.0
