import pytest

from engine.diffusion.prompt.comfy import parse_comfy


def read(text: str) -> list[tuple[str, float]]:
    return [(p.text, p.weight) for p in parse_comfy(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a (b) c", [("a ", 1.0), ("b", 1.1), (" c", 1.0)]),
        ("((b))", [("b", 1.1 * 1.1)]),
        ("(a (b:1.3):1.2)", [("a ", 1.2), ("b", 1.3)]),
        ("(a (b):1.2)", [("a ", 1.2), ("b", 1.2 * 1.1)]),
        ("(a (b:1.3))", [("a ", 1.1), ("b", 1.3)]),
        ("(a:0)(b:-1)", [("a", 0.0), ("b", -1.0)]),
        ("(a:1e1)", [("a", 10.0)]),
        ("(a:b:1.2)", [("a:b", 1.2)]),
    ],
)
def test_an_explicit_weight_replaces_the_inherited_one(text, expected):
    assert read(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a] BREAK b AND c|d", [("[a] BREAK b AND c|d", 1.0)]),
        (r"\(a\) (b\):1.5) \x", [("(a) ", 1.0), ("b)", 1.5), (r" \x", 1.0)]),
        ("(a b", [("(a b", 1.0)]),
        ("a) (b:1.3)", [("a) (b:1.3)", 1.0)]),
        ("(a))(b)", [("a", 1.1), (")(b)", 1.0)]),
        ("((a)", [("(a", 1.1)]),
        ("(:1.3)", [(":1.3", 1.1)]),
        ("(a:x)", [("a:x", 1.1)]),
        ("", []),
        ("()", []),
    ],
)
def test_all_else_is_text(text, expected):
    assert read(text) == expected
