# ruff: noqa: RUF001
"""Parts of a text, tokenised one by one, against the whole."""

import random
import re

import pytest
from tokenizers import AddedToken, normalizers

from engine.text.safe_cuts import SafeCuts
from engine.text.tokenizer import Tokenizer
from tests.helpers.models.tokenizer_kinds import (
    KINDS,
    UNBOUNDED,
    byte_level,
    random_text,
    sentencepiece,
)

UNCUT = ("lowercase",)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in UNCUT])
def test_the_parts_tokens_are_those_of_the_whole(
    kind: str, corpus: list[str], nasty_texts: list[str]
) -> None:
    raw = KINDS[kind](corpus)
    cuts = SafeCuts(raw)
    assert cuts.exist
    num_cuts = 0
    for _ in range(150):
        text = random_text(random, random.randint(2, 60))
        if random.random() < 0.3:
            text = random.choice(nasty_texts) + random.choice(corpus) + text
        places = all_cuts(cuts, text)
        num_cuts += len(places)
        ids = [
            i
            for start, end in zip([0, *places], [*places, len(text)], strict=True)
            for i in raw.encode(cuts.part(text, start, end), add_special_tokens=False).ids
        ]
        assert ids == raw.encode(text, add_special_tokens=False).ids, text
    assert num_cuts > 100


def all_cuts(cuts: SafeCuts, text: str) -> list[int]:
    places, start = [], 1
    while (place := cuts.first(text, start, len(text))) is not None:
        places.append(place)
        start = place + 1
    return places


@pytest.mark.parametrize("kind", [*UNBOUNDED, *UNCUT])
def test_where_nothing_is_certain_nothing_is_cut(kind: str, corpus: list[str]) -> None:
    cuts = SafeCuts((UNBOUNDED | KINDS)[kind](corpus))
    assert not cuts.exist
    assert cuts.first("the quick brown fox", 0, 19) is None


@pytest.mark.parametrize("content", ["brown fox", "fox", "<tag> x y", "x>"])
def test_tokens_that_might_lie_across_a_cut(content: str, corpus: list[str]) -> None:
    raw = byte_level(corpus, tokens=(AddedToken(content, rstrip=True, normalized=False),))
    assert not SafeCuts(raw).exist


def test_a_sentencepiece_token_across_a_space(corpus: list[str]) -> None:
    raw = sentencepiece("none")
    assert SafeCuts(raw).exist
    raw.add_tokens([AddedToken("a▁b", normalized=True)])
    assert not SafeCuts(raw).exist


def test_an_unknown_pattern_or_normaliser(corpus: list[str]) -> None:
    assert not SafeCuts(byte_level(corpus, normalizer=normalizers.StripAccents())).exist


def test_cuts_of_a_real_tokenizer_are_where_words_begin(smollm2: Tokenizer) -> None:
    text = "It is 42. Don't panic, he said:\nall is well; 你好，世界"
    cuts = SafeCuts(smollm2.raw)
    starts = {match.start() for match in re.finditer(r"(?<=\w)[ \n，](?=\w)", text)}
    found = set(all_cuts(cuts, text))
    assert found < starts
    assert {text[i : i + 3] for i in found} == {" is", " pa", " sa", " we", "，世界"}
