"""Patterns of strings against a search that reads every token."""

import random

import numpy as np
import pytest

from engine.text.tokenizer import Tokenizer
from engine.text.vocabulary_search import MAX_TAIL, VocabularySearch


@pytest.fixture(params=["byte_level_tokenizer", "sentencepiece_tokenizer", "smollm2"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


def _found(search: VocabularySearch, *strings: str) -> dict[tuple[int, ...], set[int]]:
    patterns = search.patterns(strings)
    heads = {one.tail: np.frombuffer(one.heads, "<i4").tolist() for one in patterns}
    assert len(heads) == len(patterns)
    assert all(ids == sorted(set(ids)) and ids for ids in heads.values())
    return {tail: set(ids) for tail, ids in heads.items()}


def _bytes(tokenizer: Tokenizer) -> list[bytes]:
    return [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]


def test_heads_without_a_tail_are_the_tokens_that_contain_the_string(tokenizer: Tokenizer) -> None:
    pieces, search = _bytes(tokenizer), VocabularySearch(tokenizer)
    some = [piece.decode(errors="ignore") for piece in random.sample(pieces, 20)]
    for string in ("\n", ":", "e", "ret", "日", *(text for text in some if text)):
        expected = {i for i, piece in enumerate(pieces) if string.encode() in piece}
        assert _found(search, string).get((), set()) - expected == set(), string
        assert expected <= _found(search, string).get((), set()), string


def test_every_spelling_in_texts_is_found(tokenizer: Tokenizer) -> None:
    """Where a text has the string, some pattern of its tokens ends where the string ends."""
    search = VocabularySearch(tokenizer)
    words = ["\nUser:", "return x", "日本語", " the", "###", "a:\n", "👍🏽"]
    missed = 0
    for string in words:
        found = _found(search, string)
        for before, after in (("", ""), ("x = 1", "\n"), ("word. ", " y"), ("end:", "zz")):
            ids = tokenizer.encode(before + string + after, add_special_tokens=False)
            is_found = any(
                ids[i] in heads and tuple(ids[i + 1 : i + 1 + len(tail)]) == tail
                for tail, heads in found.items()
                for i in range(len(ids))
            )
            missed += not is_found
    # A text may continue the string's last token, or split it otherwise, as the docstring says.
    assert missed <= len(words), missed


def test_whatever_matches_spells_the_string(tokenizer: Tokenizer) -> None:
    pieces, search = _bytes(tokenizer), VocabularySearch(tokenizer)
    for string in ("\nUser:", "return", "日本語", "::", " def f("):
        for tail, heads in _found(search, string).items():
            rest = b"".join(pieces[i] for i in tail)
            for head in heads:
                assert string.encode() in pieces[head] + rest, (string, head, tail)


def test_tokens_that_end_with_a_beginning_are_heads(tokenizer: Tokenizer) -> None:
    pieces, search = _bytes(tokenizer), VocabularySearch(tokenizer)
    found = _found(search, "\nUser:")
    ends = {i for i, piece in enumerate(pieces) if piece.endswith(b"\n")}
    assert any(ends <= heads for tail, heads in found.items() if tail)


def test_strings_are_joined_and_long_tails_cut(byte_level_tokenizer: Tokenizer) -> None:
    search = VocabularySearch(byte_level_tokenizer)
    one, other = _found(search, "\n"), _found(search, ":")
    assert _found(search, "\n", ":", "\n")[()] == one[()] | other[()]
    assert max(map(len, _found(search, "日" * 40))) == MAX_TAIL
    assert search.patterns(()) == ()
