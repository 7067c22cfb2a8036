"""Pieces of text join to what decoding everything at once gives."""

import itertools
import random
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models

from engine.text.detokenizer import IncrementalDetokenizer
from engine.text.tokenizer import Tokenizer
from engine.text.tokenizer_parts import TokenizerParts


def stream(tokenizer: Tokenizer, ids: list[int], cuts: list[int], skip: bool = True) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip)
    edges = [0, *sorted(cuts), len(ids)]
    pieces = [detokenizer.add(ids[a:b]) for a, b in itertools.pairwise(edges)]
    return [*pieces, detokenizer.finish()]


def check_against_decode(tokenizer: Tokenizer, make_ids: st.SearchStrategy[list[int]]) -> None:
    @settings(max_examples=120, deadline=None)
    @given(ids=make_ids, data=st.data(), skip=st.booleans())
    def check(ids: list[int], data: st.DataObject, skip: bool) -> None:
        cuts = data.draw(st.lists(st.integers(0, len(ids)), max_size=6))
        whole = tokenizer.decode(ids, skip_special_tokens=skip)
        one_by_one = stream(tokenizer, ids, list(range(len(ids))), skip)
        text = "".join(one_by_one)
        assert "".join(stream(tokenizer, ids, cuts, skip)) == text
        # U+FFFD only stands where decoding everything has it: no piece ends within a character.
        assert whole.startswith(text) and set(whole[len(text) :]) <= {"\ufffd"}

    check()


def test_byte_level(byte_level_tokenizer: Tokenizer) -> None:
    size = byte_level_tokenizer.vocab_size
    check_against_decode(byte_level_tokenizer, st.lists(st.integers(0, size), max_size=30))


def test_bytes_only(byte_level_tokenizer: Tokenizer) -> None:
    """Every token a byte of UTF-8 beyond ASCII: characters, pieces of them and nonsense."""
    lone = [i for i in range(600) if len(byte_level_tokenizer.token_bytes(i)) == 1]
    beyond = [i for i in lone if byte_level_tokenizer.token_bytes(i) >= b"\x80"]
    assert len(beyond) == 128
    check_against_decode(byte_level_tokenizer, st.lists(st.sampled_from(beyond), max_size=12))


def test_sentencepiece(sentencepiece_tokenizer: Tokenizer) -> None:
    tokenizer = sentencepiece_tokenizer
    byte = st.sampled_from([tokenizer.raw.token_to_id(f"<0x{b:02X}>") for b in range(256)])
    token = st.integers(0, tokenizer.vocab_size)
    check_against_decode(tokenizer, st.lists(token | byte, max_size=30))


@pytest.fixture(params=["byte_level_tokenizer", "sentencepiece_tokenizer"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


def test_texts(tokenizer: Tokenizer, nasty_texts: list[str]) -> None:
    for text in nasty_texts:
        ids = tokenizer.encode(text)
        pieces = stream(tokenizer, ids, list(range(len(ids))))
        assert "".join(pieces) == tokenizer.decode(ids)


def test_characters_come_when_they_are_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ꙮꙮ", add_special_tokens=False)
    pieces = stream(tokenizer, ids, list(range(len(ids))))
    assert [piece for piece in pieces if piece] == ["ꙮ", "ꙮ"]
    assert stream(tokenizer, ids[:-1], [len(ids) - 2])[-1] == ""


def test_a_character_that_is_cut_off_leaves_no_trace(tokenizer: Tokenizer) -> None:
    text = "".join(random.choice("aé ꙮ🦊🏳") for _ in range(12)) + "🦊"
    ids = tokenizer.encode(text, add_special_tokens=False)
    for end in range(len(ids) + 1):
        written = "".join(stream(tokenizer, ids[:end], [end // 2]))
        assert text.startswith(written)
        assert len(written) >= len(tokenizer.decode(ids[:end]).rstrip("\ufffd"))


def test_the_prompt_decides_on_the_leading_space(sentencepiece_tokenizer: Tokenizer) -> None:
    tokenizer = sentencepiece_tokenizer
    (word,) = tokenizer.encode("self", add_special_tokens=False)
    bos = tokenizer.bos_token_id
    assert bos is not None
    assert IncrementalDetokenizer(tokenizer, []).add([word]) == "self"
    assert IncrementalDetokenizer(tokenizer, [bos]).add([word]) == "self"
    assert IncrementalDetokenizer(tokenizer, [bos, word]).add([word]) == " self"
    shown = IncrementalDetokenizer(tokenizer, [bos], skip_special_tokens=False)
    assert shown.add([word]) == " self"


def test_text_continues_the_prompt(tokenizer: Tokenizer, nasty_texts: list[str]) -> None:
    for text in nasty_texts:
        ids = tokenizer.encode(text)
        cut = random.randint(0, len(ids))
        prompt = tokenizer.decode(ids[:cut])
        if prompt.endswith("\ufffd"):
            continue
        detokenizer = IncrementalDetokenizer(tokenizer, ids[:cut])
        new = "".join(detokenizer.add([i]) for i in ids[cut:]) + detokenizer.finish()
        assert prompt + new == tokenizer.decode(ids), f"{text!r} at {cut}"


def test_a_character_begun_by_the_prompt_is_completed(byte_level_tokenizer: Tokenizer) -> None:
    ids = byte_level_tokenizer.encode("xꙮy")
    detokenizer = IncrementalDetokenizer(byte_level_tokenizer, ids[:3])
    assert [detokenizer.add([i]) for i in ids[3:]] == ["ꙮ", "y"]


def word_pieces() -> Tokenizer:
    words = ["[UNK]", "hello", "world", "##ing", ",", "##s", "!"]
    raw = RawTokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    raw.decoder = decoders.WordPiece(cleanup=False)
    return Tokenizer(TokenizerParts(raw=raw, special_tokens={}))


def metaspace() -> Tokenizer:
    words = ["<unk>", "▁hello", "▁", "wor", "ld", "▁▁", "\ufffd"]
    raw = RawTokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    raw.decoder = decoders.Metaspace()
    return Tokenizer(TokenizerParts(raw=raw, special_tokens={}))


@pytest.mark.parametrize("create", [word_pieces, metaspace])
def test_decoders_that_look_at_neighbours(create: Callable[[], Tokenizer]) -> None:
    tokenizer = create()
    assert tokenizer.pieces is None
    # Id 7 has no token, and must not make its successor the first of the text.
    check_against_decode(tokenizer, st.lists(st.integers(0, 7), max_size=30))
    prompt, ids = [1, 2], [1, 3, 4]
    detokenizer = IncrementalDetokenizer(tokenizer, prompt)
    new = "".join(detokenizer.add([i]) for i in ids)
    assert tokenizer.decode(prompt) + new == tokenizer.decode(prompt + ids)


def test_a_token_that_looks_unfinished_is_not_waited_for_forever() -> None:
    detokenizer = IncrementalDetokenizer(metaspace())
    assert "\ufffd" in detokenizer.add([1] + [6] * 30)


def test_constant_time_per_token(byte_level_tokenizer: Tokenizer) -> None:
    """First bytes of characters that never end, as a random model may produce them."""
    (lead, *_) = byte_level_tokenizer.encode("ꙮ")
    plain = byte_level_tokenizer.encode("a")[0]
    for ids in ([lead] * 100_000, [plain] * 100_000):
        detokenizer = IncrementalDetokenizer(byte_level_tokenizer, ids)
        start = time.thread_time()
        for token_id in ids:
            detokenizer.add((token_id,))
        assert time.thread_time() - start < 3.0


@pytest.mark.slow
def test_real_vocabulary(smollm2: Tokenizer) -> None:
    check_against_decode(smollm2, st.lists(st.integers(0, smollm2.vocab_size), max_size=40))
    for _ in range(200):
        ids = [random.randrange(smollm2.vocab_size) for _ in range(200)]
        pieces = stream(smollm2, ids, list(range(len(ids))))
        whole = smollm2.raw.decode(ids)
        assert "".join(pieces) in (whole, whole.removesuffix("\ufffd")), ids
