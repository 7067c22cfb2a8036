import random
import re

import pytest

from engine.diffusion.prompt.course import MAX_CHARS, MAX_TEXTS, course_of
from engine.errors import InvalidParameter


def ends(text: str, num_steps: int = 10, done: int | None = None) -> list[tuple[int, str]]:
    """Give each text's last step, as the web UI writes schedules."""
    course = course_of(text, num_steps, done)
    course = course * num_steps if len(course) == 1 else course
    assert len(course) == num_steps
    return [
        (step, said)
        for step, said in enumerate(course, start=1)
        if step == num_steps or said != course[step]
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("test", [(10, "test")]),
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3]", [(3, "a "), (10, "a b")]),
        ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
        ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
        ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("a [unbalanced", [(10, "a [unbalanced")]),
        ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("[a|(b:1.1)]", [(i, ("(b:1.1)", "a")[i % 2]) for i in range(1, 11)]),
        ("[fe|]male", [(i, ("male", "female")[i % 2]) for i in range(1, 11)]),
    ],
)
def test_schedules_of_the_web_ui(text, expected):
    assert ends(text) == expected


def test_its_example_of_a_hundred_steps():
    prompt = (
        "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75]"
        "[ in foreground::0.6][ in background:0.25] [shoddy:masterful:0.5]"
    )
    lake, tree = "fantasy landscape with a lake and", "a christmas tree"
    assert ends(prompt, 100) == [
        (25, "fantasy landscape with a mountain and an oak in foreground shoddy"),
        (50, f"{lake} an oak in foreground in background shoddy"),
        (60, f"{lake} an oak in foreground in background masterful"),
        (75, f"{lake} an oak in background masterful"),
        (100, f"{lake} {tree} in background masterful"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a|b|c]", [(1, "a"), (2, "b"), (3, "c"), (4, "a")]),
        ("[a||]", [(1, "a"), (3, ""), (4, "a")]),
        ("[x [a|b]:y:2]", [(1, "x a"), (2, "x b"), (4, "y")]),
        ("([a:b:2]:1.2)", [(2, "(a:1.2)"), (4, "(b:1.2)")]),
        ("[a:b:0]", [(4, "b")]),
        ("[a:b:-3]", [(4, "b")]),
        ("[a:b:9]", [(4, "a")]),
        ("[a:b:1e999]", [(4, "a")]),
        ("[a:b:.99]", [(3, "a"), (4, "b")]),
        (r"\\[a:b:2\\] [c:d:2]", [(2, r"\\[a:b:2\\] c"), (4, r"\\[a:b:2\\] d")]),
        ("[a:b:c:2]", [(4, "[a:b:c:2]")]),
        ("[a|b:2]", [(4, "[a|b:2]")]),
        ("[a:b:soon]", [(4, "[a:b:soon]")]),
        ("[a :) b:2]", [(4, "[a :) b:2]")]),
        ("a | b [c:d:2]", [(2, "a | b c"), (4, "a | b d")]),
        ("[a", [(4, "[a")]),
        ("[a:\\", [(4, "[a:\\")]),
    ],
)
def test_what_changes_and_what_is_text(text, expected):
    assert ends(text, 4) == expected


def test_a_second_pass_counts_on():
    assert ends("a [b:.5] c", done=10) == [(10, "a b c")]
    assert ends("a [b:1.5] c", done=10) == [(5, "a  c"), (10, "a b c")]
    assert ends("a [b:13] c", done=10) == [(3, "a  c"), (10, "a b c")]
    assert ends("a [b:1.5] c") == [(10, "a  c")]


def test_brackets_in_any_order_lose_nothing_that_does_not_change():
    parts = ["a", " ", "(", ")", "[", "]", ":", "|", "1", r"\\["]
    for _ in range(300):
        text = "".join(random.choices(parts, k=random.randint(1, 20)))
        course = course_of(text, 3)
        if re.search(r"[:|]", text) is None:
            assert course == (text,)
        assert all(len(said) <= len(text) for said in course)


def test_what_would_take_the_encoder_too_long_is_refused():
    many = "".join(f"[a{i}:{i}]" for i in range(MAX_TEXTS + 1))
    with pytest.raises(InvalidParameter, match="different texts") as caught:
        course_of(many, 100)
    assert caught.value.param == "prompt"
    with pytest.raises(InvalidParameter, match="characters"):
        course_of("x" * (MAX_CHARS // 4) + "[a|b|c|d|e]", 10)
    with pytest.raises(InvalidParameter, match="brackets"):
        course_of("[" * 100, 10)
