"""Passages are llama-perplexity's, token by token."""

import random

import pytest

from engine.errors import InvalidParameter
from engine.text.scores.passages import ScoredFile, cut_passages, first_scored, start_token


def as_llama_does(token_ids, start, size):
    """Give per chunk what llama.cpp's loops read, and which tokens they predict."""
    tokens = ([] if start is None else [start]) + token_ids
    for chunk in range(len(tokens) // size):
        read, scored = [], []
        for k in range(size):
            read.append(start if k == 0 and start is not None else tokens[chunk * size + k])
        for row in range(size // 2, size - 1):
            scored.append(chunk * size + row + 1)
        yield read, scored


@pytest.mark.parametrize("start", [None, 7])
def test_they_are_those_of_llama_perplexity(tmp_path, start):
    rng = random.Random(random.getrandbits(64))
    for _ in range(50):
        size = rng.randint(4, 40)
        ids = [rng.randrange(100) for _ in range(rng.randint(size, 300))]
        pieces = [bytes([97 + i % 26]) * (i % 5) for i in range(len(ids))]
        file = ScoredFile(path=tmp_path, context=size, passages=rng.choice((None, None, 1, 2)))
        found = cut_passages(ids, pieces, start=start, file=file)
        wanted = list(as_llama_does(ids, start, size))[: file.passages]
        assert [passage.token_ids for passage in found] == [read for read, _ in wanted]
        sizes = [0] * (start is not None) + [len(piece) for piece in pieces]
        for passage, (_, scored) in zip(found, wanted, strict=True):
            assert [one.num_bytes for one in passage.facts] == [sizes[place] for place in scored]
            assert len(scored) == size - first_scored(size)


def test_without_bytes_there_are_no_facts(tmp_path):
    file = ScoredFile(path=tmp_path, context=4)
    assert cut_passages([1, 2, 3, 4], None, start=None, file=file)[0].facts is None


def test_a_text_of_less_than_a_passage_is_refused(tmp_path):
    file = ScoredFile(path=tmp_path, context=5)
    with pytest.raises(InvalidParameter, match="4 tokens and must have at least one passage of 5"):
        cut_passages([1, 2, 3], None, start=0, file=file)
    assert len(cut_passages([1, 2, 3, 4], None, start=0, file=file)) == 1


@pytest.mark.parametrize(
    ("with_special", "without", "wanted"),
    [
        ([1, 5, 6], [5, 6], 1),
        ([5, 6], [5, 6], None),
        ([1, 5, 6, 2], [5, 6], 1),
        ([5, 6, 2], [5, 6], None),
        ([5, 5], [5], 5),
    ],
)
def test_the_start_token_is_what_a_tokenizer_puts_before(with_special, without, wanted):
    assert start_token(with_special, without) == wanted


def test_a_file_is_read_without_its_last_line_end(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("one\ntwo\n\n")
    assert ScoredFile(path=path, context=4).read() == "one\ntwo\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "empty"), (b" \n\n", "empty"), (b"\xff\xfe1", "UTF-8"), (None, "No such file")],
)
def test_what_is_no_text_is_refused(tmp_path, content, words):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidParameter, match=words) as problem:
        ScoredFile(path=path, context=4).read()
    assert str(tmp_path) not in str(problem.value)
