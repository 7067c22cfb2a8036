"""`tandem eval run`: files, resumption, failures, and results that do not depend on concurrency."""

import asyncio
import json
import random

import httpx
import pytest

from evaluation import runner
from evaluation.record import Answer
from evaluation.task import load_task

NUM = 12
ANSWERS = "/v1/chat/completions"


@pytest.fixture
def quiz(written):
    """A task whose items are answered by their prompt in capitals, which half of them want."""
    right = random.sample(range(NUM), NUM // 2)
    wanted = [f"WORD {i}" if i in right else "?" for i in range(NUM)]
    lines = ({"id": f"q{i}", "prompt": f"word {i}", "references": [wanted[i]]} for i in range(NUM))
    return written("quiz.jsonl", *lines)


def test_a_run_is_scored_and_written(words, invoke, quiz, tmp_path):
    output = tmp_path / "run.jsonl"
    code, out, err = invoke(
        "run", quiz, "-o", output, "--api-key", "secret", "--score", "exact_match", "--score", "f1",
        "--json", "--max-tokens", 9, "--seed", 5, "--stop", "x", "--body", '{"top_p": 0.5}',
    )  # fmt: skip
    assert code == 0, err
    report = json.loads(out)
    assert report["scores"]["exact_match"]["value"] == 0.5
    assert report["scores"]["exact_match"]["interval"] == "Wilson"
    assert report["scores"]["f1"]["interval"] == f"bootstrap of {NUM} items"
    assert [one["id"] for one in report["items"]] == [f"q{i}" for i in range(NUM)]
    assert report["notes"] == []
    assert (report["num_answered"], report["asking"]["model"]) == (NUM, "words")
    assert {headers["authorization"] for headers in words.headers} == {"Bearer secret"}
    _, body = words.bodies[0]
    sampling = {"temperature": 0.0, "max_tokens": 9, "stop": ["x"], "top_p": 0.5}
    sampling["seed"] = body["seed"]
    assert body == {"model": "words", "messages": body["messages"], **sampling}
    assert f"{NUM} of {NUM}" in err
    code, out, _ = invoke("report", output)
    assert code == 0 and "0.500" in out and "exact_match" in out
    assert len(words.bodies) == NUM


def test_repeated_items_are_groups_and_each_request_has_its_own_seed(words, invoke, quiz, tmp_path):
    def seeds(name, seed):
        words.bodies.clear()
        options = ("--repeats", 3, "--seed", seed, "--json")
        code, out, err = invoke("run", quiz, "-o", tmp_path / name, *options)
        assert code == 0, err
        return json.loads(out), {
            (body["messages"][0]["content"], body["seed"]) for _, body in words.bodies
        }

    report, first = seeds("a.jsonl", 1)
    assert (report["num_answered"], report["num_groups"]) == (3 * NUM, NUM)
    assert report["scores"]["exact_match"]["interval"] == f"bootstrap of {NUM} groups"
    assert len({seed for _, seed in first}) == 3 * NUM
    assert seeds("b.jsonl", 1)[1] == first
    assert not first & seeds("c.jsonl", 2)[1]
    code, _, err = invoke("run", quiz, "-o", tmp_path / "a.jsonl", "--seed", 1)
    assert code == 2 and "another version of a task" in err


def test_a_run_that_was_killed_goes_on(words, invoke, quiz, tmp_path):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    assert invoke("run", quiz, "-o", whole)[0] == 0
    lines = whole.read_bytes().splitlines(keepends=True)
    kept = random.randint(0, NUM - 1)
    half_a_line = lines[kept + 1][: random.randint(0, len(lines[kept + 1]) - 1)]
    cut.write_bytes(b"".join(lines[: kept + 1]) + half_a_line)
    words.bodies.clear()
    code, _, err = invoke("run", quiz, "-o", cut)
    assert code == 0, err
    assert len(words.bodies) == NUM - kept
    reports = [json.loads(invoke("report", path, "--json")[1]) for path in (whole, cut)]
    assert reports[0] | {"file": ""} == reports[1] | {"file": ""}


def test_what_was_answered_stays_when_the_server_goes(words, invoke, quiz, tmp_path):
    output = tmp_path / "run.jsonl"
    gone = httpx.Response(401, json={"error": {"message": "who are you?"}})
    count = iter(range(100))
    words.reply = lambda text: (
        words.faults.update({ANSWERS: [gone]} if next(count) == 4 else {}) or text
    )
    code, _, err = invoke("run", quiz, "-o", output, "--concurrency", 1)
    assert code == 2
    assert "401: who are you?" in err and len(err.strip().splitlines()) == 1
    assert len(output.read_text().splitlines()) == 1 + 5
    words.bodies.clear()
    assert invoke("run", quiz, "-o", output)[0] == 0
    assert len(words.bodies) == NUM - 5


def test_items_that_are_refused_are_told_and_asked_again(words, invoke, quiz, tmp_path):
    output = tmp_path / "run.jsonl"
    words.faults[ANSWERS] = [httpx.Response(400, json={"error": {"message": "too long"}})]
    code, out, err = invoke("run", quiz, "-o", output)
    assert code == 1
    assert f"1 of {NUM} items were refused, the first of them q0" in err and "too long" in err
    assert f"1 of {NUM} items have no answer" in out
    assert invoke("run", quiz, "-o", output)[0] == 0


@pytest.mark.parametrize(
    ("options", "words_said"),
    [
        (("--model", "other"), "model 'words', and this run has 'other'"),
        (("--temperature", 1), "temperature 0.0, and this run has 1.0"),
        (("--max-tokens", 7), "max_tokens 256, and this run has 7"),
        (("--system", "be kind"), "system None, and this run has 'be kind'"),
        (("--endpoint", "completions"), "endpoint 'chat', and"),
        (("--body", '{"top_k": 1}'), "top_k None, and this run has 1"),
        (("--limit", 3), "another version of a task (quiz, 12 items)"),
    ],
)
def test_a_file_of_another_run_is_refused(words, invoke, quiz, tmp_path, options, words_said):
    output = tmp_path / "run.jsonl"
    assert invoke("run", quiz, "-o", output)[0] == 0
    before = output.read_bytes()
    words.bodies.clear()
    code, _, err = invoke("run", quiz, "-o", output, *options)
    assert code == 2
    assert words_said in err and "name another --output" in err
    assert output.read_bytes() == before and words.bodies == []


def test_a_changed_task_is_refused(words, invoke, quiz, tmp_path):
    output = tmp_path / "run.jsonl"
    assert invoke("run", quiz, "-o", output)[0] == 0
    quiz.write_text(quiz.read_text().replace("word 3", "word three"))
    code, _, err = invoke("run", quiz, "-o", output)
    assert code == 2 and "another version of a task" in err


@pytest.mark.parametrize("kind", ["answers", "choices"])
def test_scores_do_not_depend_on_concurrency(words, invoke, written, tmp_path, kind):
    choices = {"choices": ["one", "two", "three"], "answer": 1}
    wanted = choices if kind == "choices" else {"references": ["A 3 5"]}
    lines = (
        {"prompt": f"a {i % 4} {random.random()}", "group": i % 7, **wanted} for i in range(30)
    )
    task = written("task.jsonl", *lines)
    score = () if kind == "choices" else ("--score", "f1", "--score", "rougeL")
    reports = []
    for concurrency in (1, 16):
        output = tmp_path / f"run{concurrency}.jsonl"
        arguments = ("run", task, "-o", output, "--concurrency", concurrency, *score)
        code, out, err = invoke(*arguments, "--json")
        assert code == 0, err
        reports.append(json.loads(out) | {"file": ""})
    assert reports[0] == reports[1]
    assert reports[0]["num_groups"] == 7


async def test_no_more_items_are_asked_at_once_than_allowed(written):
    task = load_task(written("t.jsonl", *({"prompt": str(i)} for i in range(20))))
    limit, now, most = random.randint(2, 6), 0, 0

    class File:
        answered = frozenset()

        def append(self, item, answer):
            assert answer.text == item.prompt

    async def ask(item):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1
        return Answer(text=item.prompt)

    outcome = await runner.answer_all(
        task, ask, File(), concurrency=limit, on_end=lambda outcome: None
    )
    assert (outcome.num_answered, most) == (20, limit)


def test_choices_of_a_task_are_scored(words, invoke, written, tmp_path):
    lines = ({"prompt": f"word {i}", "choices": ["x", "y"], "answer": 0} for i in range(5))
    code, out, err = invoke("run", written("t.jsonl", *lines), "-o", tmp_path / "r.jsonl")
    assert code == 0, err
    assert "multiple_choice_per_byte" in out
    assert {path for path, _ in words.bodies} == {"/v1/completions"}


@pytest.mark.parametrize(
    ("line", "options", "words_said"),
    [
        ({"prompt": "a"}, (), "needs `references`, and this item has none"),
        ({"prompt": "a", "references": ["b"]}, ("--score", "multiple_choice"), "needs `choices`"),
        ({"prompt": "a", "references": ["b"]}, ("--score", "accuracy"), "no score 'accuracy'"),
        (
            {"prompt": "a", "references": ["b"]},
            ("--score", "f1", "--score", "multiple_choice"),
            "make two runs",
        ),
        ({"prompt": "a", "references": ["b"]}, ("--extract", "("), "no regular expression"),
        ({"prompt": "a", "references": ["b"]}, ("--body", "{"), "--body is not JSON"),
        ({"prompt": "a", "references": ["b"]}, ("--body", "[]"), "JSON object"),
        (
            {"prompt": "a", "references": ["b"]},
            ("--system", "s", "--endpoint", "completions"),
            "leave --system out",
        ),
        (
            {"messages": [{"role": "user", "content": "a"}], "references": ["b"]},
            ("--endpoint", "completions"),
            "needs `prompt`",
        ),
        ({"prompt": "a", "references": ["b"]}, ("--url", "words"), "--url"),
    ],
)
def test_wrong_orders_are_one_line(words, invoke, written, tmp_path, line, options, words_said):
    task = written("t.jsonl", line)
    code, _, err = invoke("run", task, "-o", tmp_path / "r.jsonl", *options)
    assert code == 2
    assert words_said in err and len(err.strip().splitlines()) == 1
    assert words.bodies == []


def test_a_file_that_is_no_run_is_not_written_over(words, invoke, quiz):
    quiz.write_bytes(before := quiz.read_bytes().removesuffix(b"\n"))
    code, _, err = invoke("run", quiz, "-o", quiz)
    assert code == 2 and "not a file of the form tandem-eval-run" in err
    assert quiz.read_bytes() == before


def test_only_the_part_that_is_looked_for_is_scored(words, invoke, written, tmp_path):
    words.reply = lambda text: "First 1, then 42."
    output = tmp_path / "r.jsonl"
    task = written("t.jsonl", {"prompt": "a", "references": ["42"]})
    arguments = ("run", task, "-o", output, "--json")
    assert json.loads(invoke(*arguments)[1])["scores"]["exact_match"]["value"] == 0
    report = json.loads(invoke(*arguments, "--extract", r"\d+")[1])
    assert report["scores"]["exact_match"]["value"] == 1
    assert len(words.bodies) == 1


def test_doubts_are_noted(words, invoke, quiz, tmp_path):
    output = tmp_path / "run.jsonl"
    assert invoke("run", quiz, "-o", output)[0] == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()][:-1]
    lines[1]["answer"] |= {"finish_reason": "length", "fingerprint": "a"}
    lines[2]["answer"] |= {"fingerprint": "b"}
    output.write_text("".join(json.dumps(line) + "\n" for line in lines))
    missing, cut_off, changed = json.loads(invoke("report", output, "--json")[1])["notes"]
    assert missing.startswith("1 of 12 items have no answer")
    assert cut_off.startswith("1 of 11 texts were cut off")
    assert "2 values of system_fingerprint" in changed


def test_a_plot_is_written(words, invoke, quiz, tmp_path):
    output, plot = tmp_path / "run.jsonl", tmp_path / "plot.svg"
    assert invoke("run", quiz, "-o", output, "--plot", plot)[0] == 0
    first = plot.read_bytes()
    assert b"exact_match" in first and b"words, run" in first
    assert invoke("report", output, output, "--plot", plot)[0] == 0
    assert plot.read_bytes() != first
    code, _, err = invoke("report", output, "--plot", tmp_path / "plot.txt")
    assert code == 2 and ".svg, .png or .pdf" in err
