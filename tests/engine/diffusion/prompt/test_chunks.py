import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.contract.draw import PromptSyntax
from engine.diffusion.prompt.chunks import MAX_CHUNKS, Chunk, split_chunks
from engine.diffusion.prompt.syntax import Break, Fragment
from engine.errors import InvalidParameter

COMMA = 0


def tokenize(text: str) -> list[int]:
    """A comma is 0; a word is as many tokens as it has letters, each its code."""
    return [COMMA if c == "," else ord(c) for c in text if not c.isspace()]


def split(text: str, syntax: PromptSyntax, capacity: int = 75) -> list[str]:
    chunks = split_chunks(tokenize, [Fragment(text)], capacity=capacity, syntax=syntax)
    return [show(chunk) for chunk in chunks]


def show(chunk: Chunk) -> str:
    return "".join("," if token == COMMA else chr(token) for token in chunk.token_ids)


@pytest.mark.parametrize("syntax", [PromptSyntax.PLAIN, PromptSyntax.COMPEL])
@pytest.mark.parametrize("length", [0, 1, 74, 75, 76, 150, 151])
def test_plain_prompts_are_cut_where_a_chunk_is_full(syntax, length):
    text = "".join(chr(ord("a") + i % 26) for i in range(length))
    found = split(text, syntax)
    assert found == ([text[i : i + 75] for i in range(0, length, 75)] or [""])


def test_text_after_a_near_comma_moves_on():
    head, tail = "h" * 55, "t" * 19
    assert split(f"{head},{tail}xyz", PromptSyntax.A1111) == [f"{head},", f"{tail}xyz"]
    head, tail = "h" * 54, "t" * 20
    assert split(f"{head},{tail}xyz", PromptSyntax.A1111) == [f"{head},{tail}", "xyz"]
    assert split(f"{head},{tail}xyz", PromptSyntax.PLAIN) == [f"{head},{tail}", "xyz"]


def test_a_comma_at_the_end_of_a_chunk():
    assert split("a" * 74 + ",b", PromptSyntax.A1111) == ["a" * 74 + ",", "b"]
    assert split("a" * 75 + ",b", PromptSyntax.A1111) == ["a" * 75, ",b"]
    assert split("a" * 70 + ",bbbb,c", PromptSyntax.A1111) == ["a" * 70 + ",bbbb", ",c"]


def test_weights_move_with_their_tokens():
    pieces = [Fragment("a" * 70 + ","), Fragment("bbb", 1.5), Fragment("ccc", 0.5)]
    first, second = split_chunks(tokenize, pieces, capacity=75, syntax=PromptSyntax.A1111)
    assert show(first) == "a" * 70 + ","
    assert show(second) == "bbbccc"
    assert second.weights == [1.5] * 3 + [0.5] * 3
    assert second.fragments == [1] * 3 + [2] * 3
    assert not first.is_weighted
    assert second.is_weighted


def test_breaks_end_chunks():
    def broken(*pieces: Fragment | Break) -> list[str]:
        return [
            show(c) for c in split_chunks(tokenize, pieces, capacity=5, syntax=PromptSyntax.A1111)
        ]

    assert broken(Fragment("ab"), Break(), Fragment("c")) == ["ab", "c"]
    assert broken(Fragment("abcde"), Break(), Fragment("f")) == ["abcde", "f"]
    assert broken(Break(), Fragment("a"), Break(), Break(), Fragment("b")) == ["", "a", "", "b"]
    assert broken(Fragment("a"), Break()) == ["a"]
    assert broken(Break()) == [""]


def test_comfy_keeps_short_words_whole_and_cuts_long_ones():
    assert split("aaaaaa bbbbbbb cc", PromptSyntax.COMFY, 12) == ["aaaaaa", "bbbbbbbcc"]
    assert split("aaaaaa bbbbbbbb cc", PromptSyntax.COMFY, 12) == ["aaaaaabbbbbb", "bbcc"]
    assert split("aaaaaa\nbbbbbb", PromptSyntax.COMFY, 12) == ["aaaaaabbbbbb"]
    assert split("a bbbbbb", PromptSyntax.COMFY, 3) == ["abb", "bbb", "b"]


@settings(max_examples=200, deadline=None)
@given(
    texts=st.lists(st.text("ab, ", max_size=60), max_size=6),
    capacity=st.integers(1, 30),
    syntax=st.sampled_from(list(PromptSyntax)),
)
def test_no_token_is_lost_or_doubled(texts, capacity, syntax):
    pieces = [Fragment(text, 1.0 + i / 10) for i, text in enumerate(texts)]
    expected = [(t, p.weight, i) for i, p in enumerate(pieces) for t in tokenize(p.text)]
    try:
        chunks = split_chunks(tokenize, pieces, capacity=capacity, syntax=syntax)
    except InvalidParameter:
        assert len(expected) > MAX_CHUNKS
        return
    found = [
        entry for c in chunks for entry in zip(c.token_ids, c.weights, c.fragments, strict=True)
    ]
    assert found == expected
    assert all(len(chunk) <= capacity for chunk in chunks)
    assert all(len(chunk) for chunk in chunks) or len(chunks) == 1


def test_too_many_chunks_are_refused():
    assert len(split("a" * 75 * MAX_CHUNKS, PromptSyntax.PLAIN)) == MAX_CHUNKS
    with pytest.raises(InvalidParameter, match=f"{MAX_CHUNKS} chunks of 75"):
        split("a" * (75 * MAX_CHUNKS + 1), PromptSyntax.PLAIN)
