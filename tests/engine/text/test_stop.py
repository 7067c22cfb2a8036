"""Stop strings against a search that knows the whole text."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvalidParameter
from engine.text.stop import StopMatcher


def naive(text: str, stop: list[str], include: bool) -> tuple[str, str | None]:
    """First end at which a stop string is complete; of several, the longest."""
    for end in range(len(text) + 1):
        for candidate in sorted(stop, key=len, reverse=True):
            if text[:end].endswith(candidate):
                return text[: end if include else end - len(candidate)], candidate
    return text, None


def could_begin(text: str, stop: list[str]) -> int:
    """How many characters at the end of `text` could be the beginning of a stop string."""
    return max((n for s in stop for n in range(len(s)) if n and text.endswith(s[:n])), default=0)


def run(matcher: StopMatcher, chunks: list[str]) -> list[str]:
    return [*map(matcher.add, chunks), matcher.finish()]


@settings(max_examples=400, deadline=None)
@given(
    chunks=st.lists(st.text("abc", max_size=5), max_size=12),
    stop=st.lists(st.text("abc", min_size=1, max_size=6), max_size=4),
    include=st.booleans(),
)
def test_equals_naive_search(chunks: list[str], stop: list[str], include: bool) -> None:
    matcher = StopMatcher(stop, include=include)
    seen, sent = "", ""
    expected, matched = naive("".join(chunks), stop, include)
    for chunk in chunks:
        seen += chunk
        sent += matcher.add(chunk)
        if matcher.matched is None:
            # Neither leaks the beginning of a stop string nor holds back more than that.
            assert sent == seen[: len(seen) - could_begin(seen, stop)]
        else:
            assert sent == expected
    assert sent + matcher.finish() == expected
    assert matcher.matched == matched


@pytest.mark.parametrize(
    ("stop", "chunks", "sent", "matched"),
    [
        ([], ["a", "", "b"], ["a", "", "b", ""], None),
        (["</end>"], ["a < b ", "</e", "x"], ["a < b ", "", "</ex", ""], None),
        (["</end>"], ["a", "</e", "nd> b"], ["a", "", "", ""], "</end>"),
        (["END"], ["xE", "N"], ["x", "", "EN"], None),
        (["bc", "abcd"], ["zabcd"], ["za", ""], "bc"),
        (["bc", "abc"], ["zabc"], ["z", ""], "abc"),
        (["b", "ab"], ["a", "b"], ["", "", ""], "ab"),
        (["aab"], ["aaaa", "b"], ["aa", "", ""], "aab"),
        (["aab"], ["aaa", "b"], ["a", "", ""], "aab"),
        (["abac"], ["ababa", "cd"], ["ab", "", ""], "abac"),
        (["abab", "babb"], ["aba", "bb"], ["", "", ""], "abab"),
        (["🇩🇪"], ["🇩", "🇫🇩", "🇪"], ["", "🇩🇫", "", ""], "🇩🇪"),
        (["x", "x"], ["axb", "x"], ["a", "", ""], "x"),
        (["\n\n"], ["a\n", "b\n", "\nc"], ["a", "\nb", "", ""], "\n\n"),
    ],
)
def test_cases(stop: list[str], chunks: list[str], sent: list[str], matched: str | None) -> None:
    matcher = StopMatcher(stop)
    assert run(matcher, chunks) == sent
    assert matcher.matched == matched


def test_include() -> None:
    assert run(StopMatcher(["END"], include=True), ["xE", "NDy", "z"]) == ["x", "END", "", ""]


def test_empty_stop_string() -> None:
    with pytest.raises(InvalidParameter) as caught:
        StopMatcher(["a", ""])
    assert caught.value.param == "stop"


def test_finish_gives_held_text_once() -> None:
    matcher = StopMatcher(["abc"])
    assert matcher.add("ab") == ""
    assert matcher.finish() == "ab"
    assert matcher.finish() == ""


@pytest.mark.parametrize("chunk", [1, 7, 400_000])
def test_linear_on_texts_that_almost_match(chunk: int) -> None:
    """Quadratic would be 10^10 comparisons, or as many characters copied."""
    stop = ["a" * 100_000 + "b", "a" * 99_999 + "c", "a" * 50_000 + "ba"]
    text = "a" * 200_000 + "x"
    matcher = StopMatcher(stop)
    start = time.thread_time()
    sent = [matcher.add(text[i : i + chunk]) for i in range(0, len(text), chunk)]
    assert time.thread_time() - start < 5.0
    assert "".join(sent) == text
