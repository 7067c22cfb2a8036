"""Beams in the engine: what they cost, what shares their batch, what becomes of their blocks."""

import random
from dataclasses import replace

import pytest

from engine.contract.groups import BeamParams
from engine.contract.request import FinishReason
from engine.errors import OutOfBlocks
from tests.helpers.llm.paged_executor import (
    Answer,
    PagedExecutor,
    make_config,
    make_request,
    make_scheduler,
    run_all,
    run_step,
)
from tests.helpers.llm.repetitive import outcome

WIDTH = 4


def beams(width=WIDTH, **options):
    return {"beams": BeamParams(width=width, **options)}


@pytest.fixture(scope="module", params=["tiny_llama", "tiny_gemma3"])
def folder(request):
    return request.getfixturevalue(request.param)(seed=5)


@pytest.fixture(scope="module")
def requests(engines):
    rng = random.Random(7)

    def prompt(length):
        return [rng.randrange(400) for _ in range(length)]

    def search(name, length, width, **options):
        request = engines.request(
            name, prompt(length), max_tokens=40, n=2, logprobs=3, stop_token_ids=(11, 12, 13)
        )
        return replace(request, sampling=replace(request.sampling, **beams(width, **options)))

    return [
        engines.request("b", prompt(30), temperature=1.0, seed=1, max_tokens=120, logprobs=2, n=2),
        engines.request("e", prompt(90), max_tokens=120, frequency_penalty=0.5),
        search("a", 50, 4),
        search("c", 7, 2, early_stopping=True),
        search("d", 33, 8, length_penalty=0.0, early_stopping="never"),
    ]


@pytest.fixture(scope="module")
def alone(engines, folder, requests):
    """What each gets alone, from scratch."""
    done = {}
    for request in requests:
        engine = engines.make(folder, enable_prefix_caching=False)
        done |= outcome(engines.run(engine, [request]))
    return done


@pytest.mark.each_value
@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"async_scheduling": "on"},
        {"max_num_batched_tokens": 19},
        {"num_kv_blocks": 40},
        {"num_kv_blocks": 40, "enable_prefix_caching": False, "max_num_batched_tokens": 40},
        {"num_speculative_tokens": 4, "prompt_lookup_min": 1},
    ],
    ids=str,
)
def test_neighbours_change_no_bit(engines, folder, requests, alone, knobs):
    num_groups = len(engines.make(folder)._scheduler._layout.windows)
    if "num_kv_blocks" in knobs:  # per layer group
        knobs = knobs | {"num_kv_blocks": num_groups * knobs["num_kv_blocks"]}
    engine = engines.make(folder, **knobs)
    arrivals = [0, 0, 1, 1, 2]
    assert outcome(engines.run(engine, requests, arrivals=arrivals)) == alone
    stats = engine.stats()
    assert stats.kv_blocks_used == 0
    if "num_kv_blocks" in knobs and num_groups == 1:  # layers that slide leave room
        assert stats.num_preemptions > 0
    assert outcome(engines.run(engine, requests[::-1])) == alone  # from the prefix cache


def rows_of(engine):
    """Counts tokens that steps compute."""
    launch, counts = engine._executor.launch, []

    def counted(decision):
        counts.append(decision.num_tokens)
        return launch(decision)

    engine._executor.launch = counted
    return counts


def test_costs_no_more_than_as_many_samples(engines, folder):
    prompt = list(range(100))
    counts = []
    for extra in ({"temperature": 1.0}, beams()):
        engine = engines.make(folder)
        rows = rows_of(engine)
        engines.run(
            engine,
            [engines.request("r", prompt, n=WIDTH, max_tokens=64, ignore_eos=True, **extra)],
        )
        counts.append((len(rows), sum(rows)))
    (sampled_steps, sampled_rows), (beam_steps, beam_rows) = counts
    assert beam_steps <= 1.3 * sampled_steps
    assert beam_rows <= len(prompt) + WIDTH * 63 <= sampled_rows


class Bench:
    """A scheduler over blocks that are checked."""

    def __init__(self, **changes):
        self.config = make_config(**changes)
        self.scheduler = make_scheduler(self.config)
        self.executor = PagedExecutor(self.config, scheduler=self.scheduler)

    def step(self):
        run_step(self.scheduler, self.executor, {})

    def run(self, *requests):
        return run_all(self.scheduler, self.executor, requests)


def test_beams_share_what_they_have_in_common():
    bench = Bench(num_kv_blocks=64, block_size=4)
    bench.scheduler.add(make_request("r", 40, 12, n=1, seed=0, **beams(4)))
    most = 0
    while bench.scheduler.has_work():
        bench.step()
        most = max(most, bench.scheduler.stats().kv_blocks_used)
    assert most <= 10 + 4 * 3, "the prompt's blocks are there once"
    assert bench.executor.num_copies > 0


def test_a_search_waits_until_all_its_beams_find_a_place():
    bench = Bench(max_num_seqs=4)
    long = make_request("long", 5, 30, n=2, seed=0)
    answers = bench.run(long, make_request("r", 5, 6, n=3, seed=0, **beams(3)))
    assert {key for key, answer in answers.items() if answer.finish_reason} == {
        ("long", 0), ("long", 1), ("r", 0), ("r", 1), ("r", 2),
    }  # fmt: skip


def test_an_abort_in_the_middle_frees_all():
    bench = Bench()
    bench.scheduler.add(make_request("r", 9, 30, n=2, seed=0, **beams(3)))
    for _ in range(5):
        bench.step()
    bench.scheduler.abort("r", 0)
    bench.scheduler.check_invariants()
    assert bench.scheduler.has_work()
    bench.scheduler.abort("r", 1)
    bench.scheduler.check_invariants()
    assert not bench.scheduler.has_work()
    assert bench.scheduler.stats().kv_blocks_used == 0


def test_a_completion_nobody_waits_for_is_not_told():
    bench = Bench()
    request = make_request("r", 9, 6, n=3, seed=0, **beams(3))
    whole = Bench().run(request)
    bench.scheduler.add(request)
    bench.scheduler.abort("r", 1)
    answers = run_all(bench.scheduler, bench.executor)
    assert answers == {key: answer for key, answer in whole.items() if key != ("r", 1)}


def test_a_search_that_outgrows_the_pool_fails_whoever_runs_beside_it():
    request = make_request("r", 9, 40, n=1, seed=0, **beams(4))
    for others in ((), (make_request("x", 9, 20, seed=1),)):
        bench = Bench(num_kv_blocks=16, block_size=2)  # 4 blocks per beam: 8 tokens
        with pytest.raises(OutOfBlocks, match="the KV cache holds 8"):
            bench.scheduler.add(request)
        shorter = replace(request, prompt_token_ids=request.prompt_token_ids[:4])
        answer = bench.run(*others, shorter)["r", 0]
        assert answer == Answer().failed("out_of_kv_blocks")


def test_clients_learn_once_that_a_search_has_begun():
    """Long before its texts: `/v1/requests` shows it as running."""
    bench = Bench(num_kv_blocks=20, block_size=4)
    for name in ("r", "s"):  # too many to run together: one is preempted, or waits
        bench.scheduler.add(make_request(name, 9, 12, n=2, seed=0, prompt_logprobs=0, **beams(3)))
    events = []
    while bench.scheduler.has_work():
        decision = bench.scheduler.schedule()
        events += bench.scheduler.commit(decision, bench.executor.execute(decision))
    for name in ("r", "s"):
        first, *rest = [event for event in events if event.request_id == name]
        assert first.finish_reason is None and not first.token_ids
        assert first.queue_time_s is not None and len(first.prompt_logprobs) == 9
        assert [event.index for event in rest] == [0, 1]
        for event in rest:
            assert event.finish_reason is FinishReason.LENGTH and len(event.token_ids) == 12
            assert event.queue_time_s is None and event.prompt_logprobs is None
