"""Steps launched before the outcome of the last one is known: nobody notices but the clock."""

import random
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pytest

from engine.contract.generate import GenerateRequest
from engine.contract.request import FinishReason
from engine.llm.decision import PENDING_TOKEN_ID, ScheduleDecision, StepOutput
from engine.llm.engine import LLMEngine
from tests.helpers.llm.paged_executor import (
    EOS,
    Answer,
    Answers,
    PagedExecutor,
    answer_alone,
    make_config,
    make_request,
    make_scheduler,
)
from tests.helpers.llm.sessions import (
    EVERYTHING,
    AccountedExecutor,
    OverlappedSession,
    run_sessions,
)


def test_any_load_gives_every_request_its_own_answer() -> None:
    seen = run_sessions(OverlappedSession, 60)
    assert seen.keys() >= EVERYTHING | {"ahead", "pending", "blocking"}


class Bench:
    """An engine that overlaps, and what it tells."""

    def __init__(self, executor: type[PagedExecutor] = AccountedExecutor, **changes: object):
        self.config = make_config(**({"async_scheduling": True} | changes))
        self.scheduler = make_scheduler(self.config)
        self.executor = executor(self.config)
        self.engine = LLMEngine(self.scheduler, self.executor, self.config)
        self.answers: Answers = {}

    def step(self) -> None:
        for event in self.engine.step()[0]:
            self.answers.setdefault((event.request_id, event.index), Answer()).add(event)

    def run(self, *requests: GenerateRequest) -> Answers:
        for request in requests:
            self.engine.add(request)
        while self.engine.has_work():
            self.step()
        return self.answers


def test_the_next_step_is_launched_with_tokens_nobody_knows_yet() -> None:
    bench = Bench()
    bench.engine.add(make_request("a", 6, 5, seed=1))
    bench.step()
    assert len(bench.answers["a", 0].token_ids) == 1
    [decision] = bench.executor.in_flight
    [row] = decision.scheduled
    assert (row.token_ids, row.start, row.num_output_tokens) == ([PENDING_TOKEN_ID], 6, 1)


def test_no_step_is_run_for_nothing_when_the_length_is_known() -> None:
    bench = Bench()
    answers = bench.run(make_request("a", 6, 5, seed=1), make_request("b", 3, 0, seed=1))
    assert answers["a", 0].finish_reason == answers["b", 0].finish_reason == "length"
    assert bench.executor.num_steps == 5
    assert not bench.engine.has_work()


def ends_with_eos(bench: Bench) -> GenerateRequest:
    """A request that stops by itself after a few tokens."""
    for seed in range(10_000):
        request = make_request("a", 6, 40, seed=seed, ignore_eos=False)
        answer = answer_alone(request, 0, bench.config)
        if answer.finish_reason is FinishReason.STOP and 2 <= len(answer.token_ids) <= 9:
            return request
    raise AssertionError("no such seed")


def test_the_row_behind_the_end_is_dropped() -> None:
    bench = Bench()
    request = ends_with_eos(bench)
    answer = bench.run(request)["a", 0]
    assert answer.token_ids == answer_alone(request, 0, bench.config).token_ids
    assert answer.token_ids[-1] == EOS
    assert bench.executor.num_steps == len(answer.token_ids) + 1
    assert bench.scheduler.stats().kv_blocks_used == 0


def test_an_engine_with_only_a_dropped_step_in_flight_still_has_work() -> None:
    bench = Bench()
    bench.engine.add(make_request("a", 6, 40, seed=1))
    bench.step()
    bench.engine.abort("a")
    assert not bench.scheduler.has_work()
    assert bench.engine.has_work(), "the launched step is to be collected"
    assert bench.engine.step()[0] == []
    assert not bench.engine.has_work()


@pytest.mark.parametrize(
    "sampling",
    [
        {"repetition_penalty": 1.2},
        {"frequency_penalty": 0.5},
        {"presence_penalty": -0.5},
        {"dry_multiplier": 0.8},
        {"bad_words": ((1, 2),)},
        {"mirostat": 2},
    ],
)
def test_penalties_wait_for_the_tokens(sampling: dict[str, Any]) -> None:
    bench = Bench()
    bench.run(make_request("a", 6, 5, seed=1, **sampling), make_request("b", 6, 5, seed=1))
    assert (bench.executor.num_pending, bench.executor.num_launched_ahead) == (0, 0)


def test_a_penalised_prompt_in_chunks_does_not_wait() -> None:
    bench = Bench(max_num_batched_tokens=4)
    bench.run(make_request("a", 12, 3, seed=1, repetition_penalty=1.2))
    assert bench.executor.num_launched_ahead == 2, "the second and the third of three chunks"


def test_scored_prompts_wait() -> None:
    bench = Bench(max_num_batched_tokens=4)
    answers = bench.run(make_request("a", 12, 1, seed=1, prompt_logprobs=0))
    assert bench.executor.num_launched_ahead == 0
    assert len(answers["a", 0].prompt_logprobs) == 12


def test_preemption_waits_until_nothing_is_in_flight() -> None:
    bench = Bench(num_kv_blocks=6, block_size=4, max_model_len=24)
    # a needs a seventh block while b, which has room in its own, goes on.
    requests = [make_request("a", 8, 16, seed=1), make_request("b", 5, 16, seed=2)]
    answers = bench.run(*requests)
    assert bench.scheduler.stats().num_preemptions == 1
    assert bench.executor.num_blocking == 1
    assert bench.executor.num_launched_ahead > 10
    for request in requests:
        alone = answer_alone(request, 0, bench.config)
        assert answers[request.request_id, 0].token_ids == alone.token_ids


def test_a_more_important_request_need_not_wait_until_all_others_are_done() -> None:
    bench = Bench(num_kv_blocks=6, block_size=4, max_model_len=24, scheduling_policy="priority")
    bench.engine.add(make_request("a", 12, 12, seed=1, priority=1))
    bench.step()
    assert bench.executor.in_flight
    answers = bench.run(make_request("b", 16, 2, seed=2))
    assert list(answers) == [("a", 0), ("b", 0)]
    assert bench.scheduler.stats().num_preemptions == 1
    assert bench.executor.num_blocking == 1


def test_the_prefix_cache_ends_up_with_the_same_blocks() -> None:
    lengths = [(random.randrange(1, 40), random.randrange(40)) for _ in range(20)]
    requests = [
        make_request(f"r{i}", length, num_tokens, seed=i, n=1 + i % 3, ignore_eos=False)
        for i, (length, num_tokens) in enumerate(lengths)
    ]
    found = []
    for is_async in (False, True):
        bench = Bench(async_scheduling=is_async, num_kv_blocks=800, max_idle_cached_blocks=800)
        bench.run(*requests)
        assert bool(bench.executor.num_pending) == is_async
        # Which prompts find others in the cache depends on when steps end.
        texts = {key: replace(one, num_cached_tokens=0) for key, one in bench.answers.items()}
        found.append((set(bench.scheduler._pool.cache._block_of), texts))
    assert found[0] == found[1]


class Device(PagedExecutor):
    """Runs steps in a thread of its own. Each one but the last waits for the next to be launched:
    an engine that does not overlap would wait in vain."""

    kv_bytes_committed = 0
    last_start = 10**9

    def __init__(self, config: object) -> None:
        super().__init__(config)
        self.thread = ThreadPoolExecutor(1)
        self.launches: list[threading.Event] = [threading.Event()]
        self.num_in_vain = 0
        self.patience_s = 5.0

    def launch(self, decision: ScheduleDecision) -> "DeviceStep":
        self.launches[-1].set()
        self.launches.append(next_launch := threading.Event())
        return DeviceStep(self.thread.submit(self.run, decision, next_launch))

    def run(self, decision: ScheduleDecision, next_launch: threading.Event) -> StepOutput:
        if decision.scheduled[0].start < self.last_start:
            self.num_in_vain += not next_launch.wait(self.patience_s)
        return self.execute(decision)


@dataclass
class DeviceStep:
    future: "Future[StepOutput]"

    def collect(self) -> StepOutput:
        return self.future.result()


def run_on_device(is_async: bool) -> Device:
    bench = Bench(Device, async_scheduling=is_async)
    device = bench.executor
    device.last_start = 12  # tokens 1 to 8 are drawn by steps that start at 0, 6, 7, … 12
    if not is_async:
        device.patience_s = 0.02
    request = make_request("a", 6, 8, seed=1)
    answer = bench.run(request)["a", 0]
    assert answer.token_ids == answer_alone(request, 0, bench.config).token_ids
    device.thread.shutdown()
    return device


def test_the_host_works_while_the_device_does() -> None:
    device = run_on_device(is_async=True)
    assert (device.num_steps, device.num_in_vain) == (8, 0)


def test_without_overlap_the_device_would_wait() -> None:
    """The test above can fail."""
    assert run_on_device(is_async=False).num_in_vain == 7


@pytest.fixture(scope="module")
def folder(tiny_llama):
    return tiny_llama(seed=11)


def test_log_probabilities_of_a_model_are_those_of_the_plain_engine(engines, folder) -> None:
    rng = random.Random(7)  # fixed: in fp32 two tokens can be so close that rounding decides

    def run(async_scheduling: str) -> dict:
        scores = [0, 1, None, None, None]
        requests = [
            engines.request(str(i), prompt, logprobs=2, prompt_logprobs=scores[i], max_tokens=12)
            for i, prompt in enumerate(prompts)
        ]
        return engines.run(engines.make(folder, async_scheduling=async_scheduling), requests)

    prompts = [[rng.randrange(400) for _ in range(rng.randrange(1, 40))] for _ in range(5)]
    plain, ahead = run("off"), run("on")
    assert plain.keys() == ahead.keys()
    for key, completion in plain.items():
        other = ahead[key]
        assert (completion.token_ids, completion.finish_reason) == (
            other.token_ids,
            other.finish_reason,
        )
        assert [s.rank for s in completion.logprobs] == [s.rank for s in other.logprobs]
        assert [s.logprob for s in completion.logprobs] == pytest.approx(
            [s.logprob for s in other.logprobs], abs=1e-5
        )
        assert (completion.prompt_logprobs is None) == (other.prompt_logprobs is None)
