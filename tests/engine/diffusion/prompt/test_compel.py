import pytest

from engine.diffusion.prompt.compel import parse_compel
from engine.diffusion.prompt.fragments import Blend, Break, Fragment
from engine.errors import InvalidParameter


def read(text: str) -> list[tuple[str, float]]:
    """Fragments with the blanks around them dropped: they do not reach the tokenizer."""
    return [(" ".join(p.text.split()), p.weight) for p in parse_compel(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fire flames", [("fire flames", 1)]),
        ("fire (flames)", [("fire flames", 1)]),
        ("hamburger ((kaiser roll))", [("hamburger kaiser roll", 1)]),
        ("cat hot-dog eating", [("cat hot-dog eating", 1)]),
        ("a badly formed +test prompt", [("a badly formed +test prompt", 1)]),
        ("a badly (formed +test prompt", [("a badly (formed +test prompt", 1)]),
        ("a badly (formed +test )prompt", [("a badly formed +test prompt", 1)]),
        ("(((a badly (formed +test )prompt", [("(((a badly formed +test prompt", 1)]),
        ("(a (ba)dly (f)ormed +test", [("(a ba dly f ormed +test", 1)]),
        ("a -- b", [("a -- b", 1)]),
        ("a--b", [("a--b", 1)]),
        ('a 5" nail', [('a 5" nail', 1)]),
        (r"a \(b\)+ c\+ d", [("a", 1), ("(b)", 1.1), ("c+ d", 1)]),
        ("flames+", [("flames", 1.1)]),
        ("fire flames++", [("fire", 1), ("flames", 1.1**2)]),
        ("well-known+, b", [("well-known", 1.1), (", b", 1)]),
        ("(flames)-", [("flames", 0.9)]),
        ('"flames"+', [("flames", 1.1)]),
        ('"flames".attend(0.5)', [("flames", 0.5)]),
        ("flames.attend(+)", [("flames", 1.1)]),
        ("fire (red flames).attend(0.5)", [("fire", 1), ("red flames", 0.5)]),
        ("(fire flames)0.5", [("fire flames", 0.5)]),
        ("(flowers)--- flames+++", [("flowers", 0.9**3), ("flames", 1.1**3)]),
        ("(pretty flowers)+, too hot", [("pretty flowers", 1.1), (", too hot", 1)]),
        ("fire (flames (trees)1.5)2.0", [("fire", 1), ("flames", 2.0), ("trees", 3.0)]),
        ("hot.", [("hot.", 1)]),
    ],
)
def test_vectors_of_the_library(text, expected):
    found = read(text)
    assert [t for t, _ in found] == [t for t, _ in expected]
    assert [w for _, w in found] == pytest.approx([w for _, w in expected], rel=1e-12)


def test_and_puts_parts_behind_each_other():
    assert parse_compel('("(fire)2.0", "flames-").and()') == [
        Fragment("fire", 2.0),
        Break(),
        Fragment("flames", 0.9),
    ]
    assert parse_compel("(a, b, c).and(1, 1, 1)")[1::2] == [Break(), Break()]


def test_blend_normalises_unless_told_not_to():
    assert parse_compel('("fire", "fire flames (hot)++", "hi").blend(1, 0.5, 0.5)') == [
        Blend(
            (
                (Fragment("fire"),),
                (Fragment("fire flames "), Fragment("hot", 1.1**2)),
                (Fragment("hi"),),
            ),
            (0.5, 0.25, 0.25),
        )
    ]
    assert parse_compel('("a, b", "c").blend(1, -1, no_normalize)') == [
        Blend(((Fragment("a, b"),), (Fragment("c"),)), (1.0, -1.0))
    ]
    (blend,) = parse_compel('((mountain), (tall man), "").blend()')
    assert isinstance(blend, Blend)
    assert [[f.text.strip() for f in part] for part in blend.parts] == [
        ["mountain"],
        ["tall man"],
        [],
    ]


@pytest.mark.parametrize(
    "text",
    [
        "a cat.swap(dog)",
        'x ("a", "b").and()',
        "(a) b (c).and()",
        'a withLora(style, 0.5) "b"',
        '("a", "b").and(2, 1)',
        '("a", "b").and(x)',
        '("a", "b").blend(1)',
        '("a", "b").blend(1, -1)',
        '("a", "b").blend(one, two)',
    ],
)
def test_what_is_not_supported_is_refused(text):
    with pytest.raises(InvalidParameter) as caught:
        parse_compel(text)
    assert caught.value.param == "prompt"
