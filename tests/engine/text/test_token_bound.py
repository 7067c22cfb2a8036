"""The bound is never above the real number of tokens, and near it where attacks are."""

import random

import pytest
from tokenizers import Tokenizer as RawTokenizer

from engine.text import token_bound
from engine.text.token_bound import TokenBound
from engine.text.tokenizer import Tokenizer
from tests.helpers.models.tokenizer_kinds import KINDS, UNBOUNDED, random_text


def num_tokens(raw: RawTokenizer, text: str) -> int:
    return len(raw.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_has_fewer_tokens(kind: str, corpus: list[str], nasty_texts: list[str]) -> None:
    raw = KINDS[kind](corpus)
    bound = TokenBound(raw)
    assert bound.is_known
    texts = [random_text(random, random.randint(1, 40)) for _ in range(120)] + nasty_texts
    for text in texts:
        for _ in range(2):
            real = num_tokens(raw, text)
            assert bound.at_least(text, 1 << 20) <= real, text
            assert bound.at_least(text, 3) <= real, text
            text = text * 3


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_not_trivial(kind: str, corpus: list[str]) -> None:
    """A tenth of what really comes out, for plain text."""
    raw = KINDS[kind](corpus)
    text = "the fox the fox and the fox, " * 100
    assert TokenBound(raw).at_least(text, 1 << 20) >= num_tokens(raw, text) / (
        60 if kind == "long token" else 15
    )


@pytest.mark.parametrize("kind", UNBOUNDED)
def test_where_there_is_none_it_says_so(kind: str, corpus: list[str]) -> None:
    bound = TokenBound(UNBOUNDED[kind](corpus))
    assert not bound.is_known
    assert bound.at_least("the fox " * 1000, 10) == 0


def test_a_flood_of_digits_is_known_exactly(smollm2: Tokenizer) -> None:
    bound = TokenBound(smollm2.raw)
    assert bound.at_least("7" * 5000, 10_000) == 5000
    assert bound.at_least("7" * (4 << 20), 8192) > 8192
    assert 81 <= bound.max_units <= 128


def test_bytes_that_a_vocabulary_lacks_do_not_count(smollm2: Tokenizer) -> None:
    assert num_tokens(smollm2.raw, "\x04" * 100) == 0
    assert TokenBound(smollm2.raw).at_least("\x04" * 100_000, 10) == 0


def test_a_long_text_is_counted_in_pieces(
    smollm2: Tokenizer, nasty_texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same number comes out, however long the pieces are."""
    bound = TokenBound(smollm2.raw)
    for text in nasty_texts:
        found = []
        for size in (1 << 20, 7, 1):
            monkeypatch.setattr(token_bound, "_PIECE_CHARS", size)
            growing = list(bound.growing(text, 1 << 20))
            assert growing == sorted(growing) and len(growing) == -(-len(text) // size)
            found.append(bound.at_least(text, 1 << 20))
        assert len(set(found)) == 1
