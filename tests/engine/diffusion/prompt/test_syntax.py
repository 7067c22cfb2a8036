import contextlib
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.contract.draw import PromptSyntax
from engine.diffusion.prompt.fragments import MAX_NESTING, MAX_WEIGHT
from engine.diffusion.prompt.syntax import Blend, Fragment, parse_prompt, plain_text
from engine.errors import InvalidParameter

SYNTAXES = list(PromptSyntax)
MARKED = [syntax for syntax in SYNTAXES if syntax is not PromptSyntax.PLAIN]

WORDS = st.sampled_from(["cat", "Hund", "犬", "BREAK", "hot-dog", "é", "x2"])
MARKS = st.sampled_from([*"()[]:|\\\"'+-.,=<> \n\t", ":1.3)", ")1.3", ".attend(0.5)", ":0.4"])
PROMPTS = st.lists(WORDS | MARKS | st.text(max_size=3), max_size=40).map("".join)


def words(text: str) -> str:
    """Letters in order, without the words that syntaxes understand."""
    letters = "".join(c for c in text if c.isalpha())
    return letters.replace("BREAK", "").replace("attend", "")


@settings(max_examples=300, deadline=None)
@given(text=PROMPTS, syntax=st.sampled_from(SYNTAXES))
def test_any_text_is_read_or_refused_with_a_reason(text, syntax):
    try:
        pieces = parse_prompt(text, syntax)
    except InvalidParameter as error:
        assert syntax is not PromptSyntax.PLAIN
        assert error.param == "prompt"
        return
    assert pieces
    assert all(abs(p.weight) <= MAX_WEIGHT for p in pieces if isinstance(p, Fragment))
    if any(isinstance(p, Blend) for p in pieces):
        assert len(pieces) == 1
        return
    assert words(plain_text(pieces)) == words(text)


@settings(max_examples=100, deadline=None)
@given(text=st.lists(WORDS.filter(lambda w: w != "BREAK"), min_size=1).map(" ".join))
def test_text_without_marks_is_the_same_in_every_syntax(text):
    for syntax in SYNTAXES:
        assert parse_prompt(text, syntax) == [Fragment(text)]


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_an_empty_prompt_is_one_fragment(text, syntax):
    (fragment,) = parse_prompt(text, syntax)
    assert isinstance(fragment, Fragment)
    assert not fragment.text.strip()


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_lone_surrogates_become_replacement_characters(syntax):
    assert parse_prompt("a \ud800 b", syntax) == [Fragment("a � b")]
    assert parse_prompt("a 😀 b", syntax) == [Fragment("a 😀 b")]


@pytest.mark.parametrize("syntax", MARKED)
def test_deep_nesting_is_refused_before_it_costs_time(syntax):
    with pytest.raises(InvalidParameter, match=str(MAX_NESTING)):
        parse_prompt("(a " * 5000 + ")" * 5000, syntax)


def test_brackets_nest_in_plain_text_as_they_like():
    text = "(" * 5000
    assert parse_prompt(text, PromptSyntax.PLAIN) == [Fragment(text)]


@pytest.mark.parametrize(
    ("text", "syntax"),
    [
        ("(a:101)", PromptSyntax.A1111),
        ("(a:-101)", PromptSyntax.COMFY),
        ("(a:nan)", PromptSyntax.COMFY),
        ("(a:inf)", PromptSyntax.COMFY),
        (f"(a:{'9' * 400})", PromptSyntax.A1111),
        ("(a)101", PromptSyntax.COMPEL),
        ("a" + "+" * 5000, PromptSyntax.COMPEL),
        ("(a, b).blend(nan, 1)", PromptSyntax.COMPEL),
        ("(a, b).blend(1, -0.999)", PromptSyntax.COMPEL),
        ("(a, (b)101).blend(1, 1)", PromptSyntax.COMPEL),
    ],
)
def test_weights_out_of_range_are_refused(text, syntax):
    with pytest.raises(InvalidParameter, match="weight"):
        parse_prompt(text, syntax)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(
    "unit",
    [
        'abc (b) [c] "d" e+ f:1) ',
        "some words, and more ",
        " ",
        "1",
        ":",
        "a:",
        ": ",
        "+",
        "a-",
        ",",
        '"',
        "\\",
        ")",
        '("a").and(',
        "(a, ).blend(",
        "<lora:",
    ],
)
def test_long_text_is_read_in_linear_time(unit, syntax):
    begin = time.process_time()
    for start in ("", "(a:", '("a, '):
        with contextlib.suppress(InvalidParameter):
            parse_prompt(start + unit * (30_000 // len(unit)) + "x", syntax)
    # Takes 0.1 s; something quadratic 5 s and more.
    assert time.process_time() - begin < 2


def test_plain_text_parts_words_that_fragments_part():
    assert plain_text(parse_prompt("red(cat:1.2)BREAK blue, (sky)", PromptSyntax.A1111)) == (
        "red cat blue, sky"
    )
    assert plain_text(parse_prompt("(flowers)-- flames++", PromptSyntax.COMPEL)) == "flowers flames"


def test_reading_imports_no_torch():
    code = (
        "import sys, engine.diffusion.prompt.syntax, engine.diffusion.prompt.chunks;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
