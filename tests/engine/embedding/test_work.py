"""Steps over whole inputs: how many fit into one, and what comes out."""

import random

import pytest

from engine.contract.request import FinishReason
from engine.embedding.work import EmbeddingEngine, EmbeddingLimits, EmbeddingWork
from engine.errors import QueueFull, RequestError
from kernels import native
from tests.helpers.models.embedding_toy import ask, make, numbers, run
from tests.helpers.models.tiny_encoders import NUM_TOKENS, load_encoder, make_encoder, random_texts


def test_each_input_ends_with_its_embedding():
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


def test_dimensions_cut_and_lengths_are_1_where_the_model_says_so():
    engine, _ = make(normalizes=True)
    engine.add(ask("whole", [1, 5]))
    engine.add(ask("cut", [3, 5, 5, 5], dimensions=2))
    found = run(engine)
    assert numbers(found["whole", 0]) == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert numbers(found["cut", 0]) == pytest.approx([0.6, 0.8])
    engine, _ = make()
    engine.add(ask("cut", [3, 5, 5, 5], dimensions=2))
    assert numbers(run(engine)["cut", 0]) == [3, 4]


def test_a_step_keeps_to_its_tokens_and_inputs():
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


@pytest.mark.parametrize(
    ("request_", "words", "param"),
    [
        (ask("r", [1], []), r"input\[1\] has no tokens", "input"),
        (ask("r", [1] * 21), r"length is 20 tokens.* input\[0\] has 21 tokens", "input"),
        (ask("r", [1], [100]), "token id 100; this model's token ids are 0 to 99", "input"),
        (ask("r", [-1]), "token id -1", "input"),
        (
            ask("r", [1], dimensions=4),
            "dimensions is 4; .* ask for 1 to 3",
            "dimensions",
        ),
        (ask("r", [1], dimensions=0), "dimensions is 0", "dimensions"),
    ],
)
def test_what_the_model_cannot_take_is_refused(request_, words, param):
    engine, _ = make()
    with pytest.raises(RequestError, match=words) as caught:
        engine.add(request_)
    assert caught.value.param == param
    assert not engine.has_work()


def test_every_input_is_answered_once_whatever_comes_and_goes():
    engine, toy = make(max_num_queued=60)
    owed = {}
    num_tokens = number = 0
    for _ in range(400):
        if random.random() < 0.4:
            number += 1
            num_inputs = random.randint(1, 12)
            inputs = [[random.randrange(60)] * random.randint(1, 20) for _ in range(num_inputs)]
            try:
                engine.add(ask(f"r{number}", *inputs))
                owed[f"r{number}"] = set(range(len(inputs)))
            except QueueFull:
                assert engine.stats().num_waiting > 60 - 12
        if owed and random.random() < 0.1:
            gone = random.choice(list(owed))
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
        assert engine.stats().num_waiting == sum(map(len, owed.values()))
    assert engine.stats().num_tokens == num_tokens == sum(len(t) for c in toy.calls for t in c)


@pytest.mark.skipif(native.library() is None, reason="needs the C++ operations")
def test_bytes_do_not_depend_on_what_shares_the_step(tmp_path):
    encoder = load_encoder(make_encoder(tmp_path))

    def embed(*requests):
        limits = EmbeddingLimits(
            max_model_len=64,
            vocab_size=NUM_TOKENS,
            dimensions=48,
            normalizes=True,
            max_num_seqs=64,
            max_num_batched_tokens=random.choice((64, 150, 4000)),
            max_num_queued=999,
        )
        engine = EmbeddingEngine(EmbeddingWork(encoder, limits), limits)
        for request in requests:
            engine.add(request)
        return {key: event.embedding for key, event in run(engine).items()}

    texts = random_texts(10)
    alone = [embed(ask("x", text))["x", 0] for text in texts]
    for _ in range(5):
        others = [ask(f"o{i}", *random_texts(random.randint(1, 6))) for i in range(3)]
        found = embed(others[0], ask("x", *texts), *others[1:])
        assert [found["x", i] for i in range(len(texts))] == alone
