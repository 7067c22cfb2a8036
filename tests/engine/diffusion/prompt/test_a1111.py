import pytest

from engine.diffusion.prompt.a1111 import parse_a1111
from engine.diffusion.prompt.fragments import Break, Fragment
from engine.errors import InvalidParameter


def read(text: str) -> list[tuple[str, float] | str]:
    return [
        (p.text, p.weight) if isinstance(p, Fragment) else type(p).__name__
        for p in parse_a1111(text)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.5730000000000004),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641000000000006),
                (".", 1.1),
            ],
        ),
    ],
)
def test_vectors_of_the_web_ui_hold_to_the_last_bit(text, expected):
    assert read(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(a (b:1.3):1.2)", [("a ", 1.2), ("b", 1.3 * 1.2)]),
        ("[a [b]]", [("a ", 1 / 1.1), ("b", 1 / 1.1 / 1.1)]),
        ("[x", [("x", 1 / 1.1)]),
        ("(a: 1.5 )", [("a", 1.5)]),
        ("(a:-.5)(b:+2.)", [("a", -0.5), ("b", 2.0)]),
        ("a) b] c", [("a) b] c", 1.0)]),
        ("a:1.3) b", [("a:1.3) b", 1.0)]),
        ("(16:9)", [("16", 9.0)]),
        ("(y:..)", [("y:..", 1.1)]),
        ("a: b, c|d", [("a: b, c|d", 1.0)]),
        (r"a\\b \n c", [(r"a\b n c", 1.0)]),
        ("([a)b]", [("a", 1.1 / 1.1), ("b", 1 / 1.1)]),
    ],
)
def test_nesting_escapes_and_unbalanced_brackets(text, expected):
    assert [t for t, _ in read(text)] == [t for t, _ in expected]
    assert [w for _, w in read(text)] == pytest.approx([w for _, w in expected], rel=1e-15)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a BREAK b", [("a", 1.0), "Break", ("b", 1.0)]),
        ("a\nBREAK\nBREAK b", [("a", 1.0), "Break", "Break", ("b", 1.0)]),
        ("(a BREAK b:1.2)", [("a", 1.2), "Break", ("b", 1.2)]),
        ("BREAKFAST break", [("BREAKFAST break", 1.0)]),
        ("BREAK", ["Break"]),
    ],
)
def test_break_ends_a_chunk_and_is_no_text(text, expected):
    assert read(text) == expected


@pytest.mark.parametrize("text", ["", "()", "[]", "((("])
def test_nothing_is_nothing(text):
    assert read(text) == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a cat AND a dog", "AND"),
        ("a cat <lora:style:0.8>", "lora"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(text, names):
    with pytest.raises(InvalidParameter, match=names) as caught:
        parse_a1111(text)
    assert caught.value.param == "prompt"
    assert "cat" not in caught.value.message


@pytest.mark.parametrize("text", [r"a \[b:c:0.4\]", "(a|b)", "a:3] b", "LAND and"])
def test_what_only_looks_like_it_is_text(text):
    assert all(not isinstance(p, Break) for p in parse_a1111(text))
