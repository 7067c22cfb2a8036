"""The methods on a server in memory that has seen nothing, or what a test says."""

import json
import random
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from evaluation.contamination.item_text import halves, texts_of
from evaluation.contamination.methods import Knobs, ModelScores, lowest_mean
from evaluation.contamination.order import order_p_value
from evaluation.contamination.report import item_finding
from evaluation.task import Item, Task
from tests.helpers.evaluation.word_server import WordServer, logprob, pieces


def fresh_task(path, num=16):
    items = [Item(str(i), f"{random.random()} of {random.random()}?") for i in range(num)]
    return Task(path, "fresh", "", tuple(items), tuple(range(num)))


def fresh_lines(num):
    return [
        {
            "prompt": f"{random.random()} and {random.random()}:",
            "references": [f"so {random.random()}"],
        }
        for _ in range(num)
    ]


def texts_in(lines):
    return [f"{line['prompt']} {line['references'][0]}" for line in lines]


def knows(text):
    """What a model thinks that has seen a text: each pair of its words is likely."""
    words = text.split()
    pairs = set(pairwise(words))

    def thinks(tokens, index):
        is_known = (tokens[index - 1].strip(), tokens[index].strip()) in pairs
        return -0.01 if is_known else logprob(tokens, index)

    return thinks


async def test_p_values_are_uniform_if_nothing_was_seen(tmp_path):
    p_values = {"min_k": [], "order": []}
    knobs = Knobs(orders=5, stretch_tokens=16)
    async with WordServer().endpoint() as endpoint:
        scores = ModelScores(endpoint, "words", knobs, 8)
        for seed in range(60):
            task, unseen = fresh_task(tmp_path), fresh_task(tmp_path)
            values = [await scores.min_k(texts_of(one)) for one in (task, unseen)]
            found = item_finding(
                "min_k", task, values[0], unseen, values[1], paired=False, seed=seed
            )
            p_values["min_k"].append(found["p_value"])
            p_values["order"].append(order_p_value(await scores.order(texts_of(task)), seed=seed))
    for values in p_values.values():
        assert stats.kstest(values, "uniform").pvalue > 1e-4


async def test_only_the_published_order_is_preferred_by_who_saw_it(tmp_path):
    texts = texts_of(fresh_task(tmp_path, 40))
    server = WordServer()
    server.thinks = knows(" ".join(texts))
    async with server.endpoint() as endpoint:
        scores = ModelScores(endpoint, "words", Knobs(orders=9, stretch_tokens=24), 8)
        assert order_p_value(await scores.order(texts), seed=0) < 0.01
        # The same items, each as well known as before.
        assert order_p_value(await scores.order(texts[::-1]), seed=0) > 0.01


def test_a_task_that_was_seen_is_told_from_one_that_was_not(words, invoke, written):
    lines, others = fresh_lines(30), fresh_lines(30)
    texts = texts_in(lines)
    words.thinks = knows("\n".join(texts))
    words.reply = lambda begun: next(
        (text[len(begun) :] for text in texts if text.startswith(begun)), "nothing"
    )
    task, unseen = written("seen.jsonl", *lines), written("unseen.jsonl", *others)
    corpus = written("corpus.txt", *texts[:20])
    arguments = ("--unseen", unseen, "--corpus", corpus, "--ngram", 3, "--stretch-tokens", 40)
    code, out, _ = invoke("contamination", task, *arguments, "--json")
    found = json.loads(out)["methods"]
    assert code == 0 and list(found) == ["min_k", "order", "completion", "ngrams"]
    tokens = pieces(texts[0])
    known = [words.thinks(tokens, i) for i in range(1, len(tokens))]
    assert found["min_k"]["scores"][0] == pytest.approx(lowest_mean(known, 20))
    assert found["completion"]["value"] == 1.0 and found["completion"]["base_rate"] == 0.0
    assert sum(found["ngrams"]["scores"][:20]) == 20
    for name in ("min_k", "completion", "ngrams"):
        assert found[name]["p_value"] < 0.001 and found[name]["auroc"]["low"] > 0.7, name
    assert found["order"]["p_value"] < 0.01 and found["order"]["base_p_value"] > 0.001
    code, table, _ = invoke("contamination", task, *arguments)
    assert code == 0 and "min_k: Easy or usual texts" in table
    code, out, _ = invoke("contamination", task, "--method", "min_k", "--method", "order")
    assert code == 0 and "there is no p-value: give --unseen" in out


def test_paraphrases_are_found_by_id(words, invoke, written):
    lines = [{**line, "id": f"q{i}"} for i, line in enumerate(fresh_lines(20))]
    rewritten = [{**line, "id": f"q{i}"} for i, line in enumerate(fresh_lines(20))]
    words.thinks = knows("\n".join(texts_in(lines)))
    task, others = written("task.jsonl", *lines), written("others.jsonl", *rewritten[::-1])
    code, out, _ = invoke(
        "contamination", task, "--paraphrases", others, "--method", "min_k", "--json"
    )
    found = json.loads(out)["methods"]["min_k"]
    assert code == 0 and found["p_value"] < 0.001 and found["test"].startswith("paired")
    code, _, err = invoke("contamination", task, "--paraphrases", written("a.jsonl", *lines[1:]))
    assert code == 2 and "'q0' has no paraphrase" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "ngrams"), "--corpus FILE belong together"),
        (("--method", "order", "--stretch-tokens", 2), "no two neighbouring items fit into 2"),
        (("--method", "magic"), "the methods are min_k, order"),
        (("--unseen", "a", "--paraphrases", "b"), "either --unseen or --paraphrases"),
    ],
)
def test_what_cannot_be_asked_is_told(words, invoke, written, arguments, message):
    task = written("task.jsonl", *fresh_lines(3))
    code, _, err = invoke("contamination", task, *arguments)
    assert code == 2 and message in err


def test_an_items_text_holds_its_right_answer(tmp_path):
    items = (
        Item("1", "Bees make", choices=("milk", "honey"), answer=1),
        Item("2", "2 + 2 =\n", references=("4", "four")),
        Item("3", "No answer"),
    )
    texts = texts_of(Task(tmp_path, "t", "", items, (1, 2, 3)))
    assert texts == ["Bees make honey", "2 + 2 =\n4", "No answer"]
    assert halves("a  b c") == ("a  b", " c")


def test_the_lowest_values_count():
    values = np.random.permutation(np.arange(-1.0, -51, -1))
    assert lowest_mean(values, 20) == pytest.approx(np.mean(np.arange(-50, -40)))
    assert lowest_mean([-3.0, -1.0], 20) == -3.0
