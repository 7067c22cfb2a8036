"""Tasks are read, and what is wrong with a line is said with its number."""

import json
import random

import pytest

from evaluation.problem import EvaluationProblem
from evaluation.task import load_task


def test_items_have_what_their_lines_say(written):
    path = written(
        "quiz.jsonl",
        {"prompt": "2 + 2 =", "references": ["4", "four"]},
        {"id": "b", "prompt": "3 + 3 =", "references": "6", "group": 7, "meta": {"any": 1}},
        {"messages": [{"role": "user", "content": "hi"}], "references": ["hello"]},
        {"prompt": "A day?", "choices": ["red", "May 1"], "answer": "May 1"},
        {"prompt": "A day?", "choices": ["red", "May 1"], "answer": 0},
    )
    task = load_task(path)
    first, second, third, fourth, fifth = task.items
    assert (task.name, len(task.digest)) == ("quiz", 64)
    assert (first.id, first.references, first.group) == ("1", ("4", "four"), None)
    assert (second.id, second.references, second.group) == ("b", ("6",), "7")
    assert third.prompt is None and third.messages[0]["content"] == "hi"
    assert (fourth.answer, fifth.answer) == (1, 0)


def test_empty_lines_count_but_are_no_items(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('\n{"prompt": "a"}\n\n{"prompt": "b"}')
    assert [item.id for item in load_task(path).items] == ["2", "4"]


GOOD = {"prompt": "a", "choices": ["x", "y"], "answer": 0}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ({"prompt": "a", "refrence": "b"}, "unknown field 'refrence'"),
        ({"references": ["b"]}, "either `prompt` or `messages`"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "either"),
        ({"prompt": 3}, "`prompt` must be a text"),
        ({"prompt": " "}, "not empty"),
        ({"messages": ["hi"]}, "`messages` must be a list"),
        ({"prompt": "a", "references": [4]}, "`references` must be a list of texts"),
        ({"prompt": "a", "id": ["x"]}, "`id` must be"),
        ({"prompt": "a", "group": True}, "`group` must be"),
        ({"prompt": "a", "answer": 0}, "there are none"),
        (GOOD | {"answer": 2}, "from 0 to 1"),
        (GOOD | {"answer": True}, "from 0 to 1"),
        (GOOD | {"answer": "z"}, "or its text"),
        (GOOD | {"answer": None}, "`answer` is None"),
        (GOOD | {"choices": ["x"]}, "at least two"),
        (GOOD | {"choices": ["x", "x"]}, "different"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, words):
    before = random.randrange(4)
    text = line if isinstance(line, str) else json.dumps(line)
    path = tmp_path / "t.jsonl"
    path.write_text("".join(f'{{"prompt": "{i}"}}\n' for i in range(before)) + text + "\n")
    with pytest.raises(EvaluationProblem) as caught:
        load_task(path)
    assert str(caught.value).startswith(f"{path}:{before + 1}: ")
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_id_occurs_once(written):
    path = written("t.jsonl", {"prompt": "a"}, {"id": 1, "prompt": "b"})
    with pytest.raises(EvaluationProblem, match=r"t\.jsonl:2: the id '1' is that of line 1"):
        load_task(path)


def test_files_without_items(tmp_path):
    with pytest.raises(EvaluationProblem, match="cannot be read"):
        load_task(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(EvaluationProblem, match="no items"):
        load_task(tmp_path / "empty.jsonl")


def test_a_shorter_task_is_another_one(written):
    task = load_task(written("t.jsonl", *({"prompt": str(i)} for i in range(5))))
    assert len(task.first(2).items) == 2
    assert task.first(2).digest != task.digest
    assert task.first(5) is task.first(None) is task
