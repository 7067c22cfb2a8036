"""Steps over whole inputs: whose turn it is, what comes out, what a fault does to others."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from tiny_encoders import NUM_TOKENS, load_encoder, make_encoder, random_texts

from engine.contract.embed import EmbeddingRequest
from engine.contract.request import FinishReason
from engine.embedding.engine import EmbeddingEngine, EmbeddingLimits
from engine.errors import InvalidParameter, QueueFull
from kernels import native

LIMITS = EmbeddingLimits(
    max_model_len=20,
    vocab_size=100,
    dimensions=3,
    normalizes=False,
    max_num_seqs=4,
    max_num_batched_tokens=30,
    max_num_queued=8,
)
POISON, HOLLOW = 66, 77
"""Token ids: a text with the first cannot be embedded, one with the second is not finite."""


class Toy:
    """Embeds a text as its first token, its length and 2; notes what shares a call."""

    def __init__(self) -> None:
        self.calls: list[list[list[int]]] = []

    def embed(self, texts: Any) -> torch.Tensor:
        self.calls.append([list(text) for text in texts])
        if any(POISON in text for text in texts):
            raise ZeroDivisionError
        rows = [[float(text[0]), float(len(text)), 2.0] for text in texts]
        for row, text in zip(rows, texts, strict=True):
            if HOLLOW in text:
                row[1] = float("nan")
        return torch.tensor(rows)


def make(**changes: Any) -> tuple[EmbeddingEngine, Toy]:
    toy = Toy()
    fields = {name: getattr(LIMITS, name) for name in LIMITS.__slots__} | changes
    return EmbeddingEngine(toy, EmbeddingLimits(**fields)), toy


def ask(request_id: str, *inputs: list[int], **fields: Any) -> EmbeddingRequest:
    return EmbeddingRequest(request_id=request_id, model="m", inputs=list(inputs), **fields)


def numbers(event: Any) -> list[float]:
    return np.frombuffer(event.embedding, "<f4").tolist()


def run(engine: EmbeddingEngine) -> dict[tuple[str, int], Any]:
    found: dict[tuple[str, int], Any] = {}
    while engine.has_work():
        for event in engine.step()[0]:
            assert (event.request_id, event.index) not in found
            found[event.request_id, event.index] = event
    return found


def test_each_input_ends_with_its_embedding() -> None:
    engine, _ = make()
    engine.add(ask("a", [1, 1], [2], arrival_time_s=0.0))
    events, stats = engine.step()
    assert [(e.request_id, e.index, e.finish_reason, numbers(e)) for e in events] == [
        ("a", 0, FinishReason.STOP, [1, 2, 2]),
        ("a", 1, FinishReason.STOP, [2, 1, 2]),
    ]
    assert [event.queue_time_s is not None for event in events] == [True, False]
    assert (stats.num_steps, stats.num_tokens, stats.step_inputs, stats.step_tokens) == (1, 3, 2, 3)
    assert (stats.num_running, stats.num_waiting, engine.has_work()) == (0, 0, False)


def test_dimensions_cut_and_lengths_are_1_where_the_model_says_so() -> None:
    engine, _ = make(normalizes=True)
    engine.add(ask("whole", [1, 5]))
    engine.add(ask("cut", [3, 5, 5, 5], dimensions=2))
    found = run(engine)
    assert numbers(found["whole", 0]) == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert numbers(found["cut", 0]) == pytest.approx([0.6, 0.8])
    engine, _ = make()
    engine.add(ask("cut", [3, 5, 5, 5], dimensions=2))
    assert numbers(run(engine)["cut", 0]) == [3, 4]


def test_a_step_keeps_to_its_tokens_and_inputs() -> None:
    engine, toy = make()
    engine.add(ask("long", *[[1] * 14] * 3))
    run(engine)
    assert [len(call) for call in toy.calls] == [2, 1]
    toy.calls.clear()
    engine.add(ask("short", *[[1]] * 8))
    run(engine)
    assert [len(call) for call in toy.calls] == [4, 4]
    engine, toy = make(max_num_batched_tokens=5)
    engine.add(ask("longer than a step", [1] * 20, [2]))
    run(engine)
    assert [len(call) for call in toy.calls] == [1, 1]


def test_requests_take_turns() -> None:
    engine, toy = make(max_num_queued=99)
    engine.add(ask("many", *[[1]] * 40))
    engine.add(ask("one", [2]))
    engine.add(ask("two", [3], [4]))
    engine.step()
    engine.step()
    assert toy.calls[0] == [[1], [2], [3], [1]]
    assert [4] in toy.calls[1]


def test_under_priority_turns_go_to_the_most_important_first() -> None:
    for policy, expected in (
        ("fcfs", [[1], [2], [3], [1], [2], [3], [1]]),
        ("priority", [[2], [3], [2], [3], [1], [1], [1]]),
    ):
        engine, toy = make(max_num_queued=99, max_num_seqs=1, scheduling_policy=policy)
        engine.add(ask("low", *[[1]] * 3, priority=5))
        engine.add(ask("b", *[[2]] * 2, priority=-1))
        engine.add(ask("c", *[[3]] * 2, priority=-1))
        assert len(run(engine)) == 7
        assert [text for [text] in toy.calls] == expected
    engine, toy = make(max_num_queued=99, max_num_seqs=1, scheduling_policy="priority")
    engine.add(ask("low", *[[1]] * 3))
    engine.step()
    engine.add(ask("late", [2], priority=-1))
    engine.add(ask("gone", [3], priority=-2))
    engine.abort("gone")
    run(engine)
    assert [text for [text] in toy.calls] == [[1], [2], [1], [1]]


def test_an_aborted_request_gets_no_further_step() -> None:
    engine, toy = make(max_num_queued=99)
    engine.add(ask("gone", *[[1]] * 9))
    engine.add(ask("stays", [2]))
    engine.step()
    engine.abort("gone")
    engine.abort("never came")
    assert not engine.has_work()
    assert engine.stats().num_waiting == 0
    assert len(toy.calls) == 1


def test_a_fault_ends_the_input_that_it_belongs_to() -> None:
    engine, toy = make()
    engine.add(ask("bad", [1], [POISON]))
    engine.add(ask("hollow", [3, HOLLOW]))
    engine.add(ask("good", [2]))
    found = run(engine)
    assert numbers(found["good", 0]) == [2, 1, 2]
    assert numbers(found["bad", 0]) == [1, 1, 2]
    for key in (("bad", 1), ("hollow", 0)):
        assert found[key].finish_reason is FinishReason.ERROR
        assert found[key].failure.code == "request_failed"
        assert found[key].embedding == b""
    assert "not finite" in found["hollow", 0].failure.message
    assert len(toy.calls) == 1 + 4


@pytest.mark.parametrize(
    ("request_", "words", "param"),
    [
        (ask("r", [1], []), r"input\[1\] has 0 tokens; it must have from 1 to 20", "input"),
        (ask("r", [1] * 21), r"input\[0\] has 21 tokens", "input"),
        (ask("r", [1], [100]), r"input\[1\] .* vocabulary; ids go from 0 to 99", "input"),
        (ask("r", [-1]), r"input\[0\] .* vocabulary", "input"),
        (
            ask("r", [1], dimensions=4),
            "dimensions is 4; it must be from 1 to 3",
            "dimensions",
        ),
        (ask("r", [1], dimensions=0), "dimensions is 0", "dimensions"),
    ],
)
def test_what_the_model_cannot_take_is_refused(
    request_: EmbeddingRequest, words: str, param: str
) -> None:
    engine, _ = make()
    with pytest.raises(InvalidParameter, match=words) as caught:
        engine.add(request_)
    assert caught.value.param == param
    assert not engine.has_work()


def test_as_many_inputs_wait_as_may_and_one_request_may_bring_more() -> None:
    engine, _ = make()
    engine.add(ask("many", *[[1]] * 20))
    with pytest.raises(QueueFull, match="20 inputs are waiting and this request has 1 more; the"):
        engine.add(ask("one", [1]))
    run(engine)
    engine.add(ask("seven", *[[1]] * 7))
    engine.add(ask("one", [1]))
    with pytest.raises(QueueFull, match="8 inputs are waiting"):
        engine.add(ask("another", [1]))


def test_every_input_is_answered_once_whatever_comes_and_goes() -> None:
    seed = random.randrange(1 << 16)
    rng = random.Random(seed)
    engine, toy = make(max_num_queued=60)
    owed: dict[str, set[int]] = {}
    num_tokens = number = 0
    for _ in range(400):
        if rng.random() < 0.4:
            number += 1
            inputs = [[rng.randrange(60)] * rng.randint(1, 20) for _ in range(rng.randint(1, 12))]
            try:
                engine.add(ask(f"r{number}", *inputs))
                owed[f"r{number}"] = set(range(len(inputs)))
            except QueueFull:
                assert engine.stats().num_waiting > 60 - 12
        if owed and rng.random() < 0.1:
            gone = rng.choice(list(owed))
            engine.abort(gone)
            del owed[gone]
        if engine.has_work():
            events, stats = engine.step()
            assert 1 <= len(events) == stats.step_inputs <= 4
            assert stats.step_tokens <= 30 or len(events) == 1
            num_tokens += stats.step_tokens
            for event in events:
                owed[event.request_id].remove(event.index)
            owed = {name: left for name, left in owed.items() if left}
        assert engine.stats().num_waiting == sum(map(len, owed.values())), f"seed {seed}"
    assert engine.stats().num_tokens == num_tokens == sum(len(t) for c in toy.calls for t in c)


@pytest.mark.skipif(native.library() is None, reason="needs the C++ operations")
def test_bytes_do_not_depend_on_what_shares_the_step(tmp_path: Any) -> None:
    seed = random.randrange(1 << 16)
    rng = random.Random(seed)
    encoder = load_encoder(make_encoder(tmp_path, seed=seed))

    def embed(*requests: EmbeddingRequest) -> dict[tuple[str, int], bytes]:
        limits = EmbeddingLimits(
            max_model_len=64,
            vocab_size=NUM_TOKENS,
            dimensions=48,
            normalizes=True,
            max_num_seqs=64,
            max_num_batched_tokens=rng.choice((64, 150, 4000)),
            max_num_queued=999,
        )
        engine = EmbeddingEngine(encoder, limits)
        for request in requests:
            engine.add(request)
        return {key: event.embedding for key, event in run(engine).items()}

    texts = random_texts(rng, 10)
    alone = [embed(ask("x", text))["x", 0] for text in texts]
    for _ in range(5):
        others = [ask(f"o{i}", *random_texts(rng, rng.randint(1, 6))) for i in range(3)]
        found = embed(others[0], ask("x", *texts), *others[1:])
        assert [found["x", i] for i in range(len(texts))] == alone, f"seed {seed}"
