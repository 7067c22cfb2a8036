"""The step that ties scheduler and executor together."""

import random
import subprocess
import sys
import time
from collections.abc import Collection

import pytest

from engine.contract.generate import EngineStats, TokenEvent
from engine.errors import InvalidParameter, InvariantViolation, UnknownAdapter
from engine.llm.engine import LLMEngine
from tests.helpers.llm.paged_executor import (
    PagedExecutor,
    make_config,
    make_request,
    make_scheduler,
)


class Executor(PagedExecutor):
    """An executor each of whose blocks takes 100 bytes."""

    kv_bytes_committed = 500
    is_down = False

    def shutdown(self) -> None:
        self.is_down = True


def make_engine(**changes: object) -> tuple[LLMEngine, Executor]:
    config = make_config(**changes)
    executor = Executor(config)
    return LLMEngine(make_scheduler(config), executor, config), executor


class Shelf:
    """Adapters that neither come nor go."""

    def __init__(self, keys: dict[str, str]) -> None:
        self.keys = keys

    def key_of(self, name: str) -> str:
        if name not in self.keys:
            raise UnknownAdapter(f"the model has no adapter {name!r}")
        return self.keys[name]

    def check(self, keys: Collection[str]) -> None:
        assert set(keys) <= set(self.keys.values())

    def take(self, keys: Collection[str]) -> bool:
        return True

    def has_work(self) -> bool:
        return False


def test_adapters_that_the_executor_lacks_are_refused() -> None:
    config = make_config()
    shelf = Shelf({"a": "a0"})
    engine = LLMEngine(make_scheduler(config), Executor(config), config, adapters=shelf)  # type: ignore[arg-type]
    engine.add(make_request("1", 6, 3, adapter="a"))
    with pytest.raises(UnknownAdapter, match="no adapter 'b'"):
        engine.add(make_request("2", 6, 3, adapter="b"))
    events, _ = run(engine)
    assert {event.request_id for event in events} == {"1"}


def run(engine: LLMEngine) -> tuple[list[TokenEvent], list[EngineStats]]:
    events, stats = [], []
    while engine.has_work():
        new_events, step_stats = engine.step()
        events += new_events
        stats.append(step_stats)
    return events, stats


def test_requests_become_events_and_stats() -> None:
    engine, executor = make_engine()
    engine.add(make_request("a", 6, 3, seed=1))
    engine.add(make_request("b", 40, 2, seed=1))
    events, stats = run(engine)
    assert [e.request_id for e in events if e.finish_reason] == ["a", "b"]
    assert sum(len(e.token_ids) for e in events) == 5
    assert [s.step_tokens for s in stats] == [32, 15, 2]
    assert [s.num_steps for s in stats] == [1, 2, 3]
    for each in stats:
        assert (each.forward_time_s, each.sample_time_s) == (0.5, 0.25)
        assert 0 < each.schedule_time_s < 1
        assert each.kv_bytes_committed == 500
    assert (stats[0].num_running, stats[-1].num_running) == (2, 0)
    engine.shutdown()
    assert executor.is_down


def test_between_steps_stats_have_no_tokens_and_no_times() -> None:
    engine, _ = make_engine()
    engine.add(make_request("a", 6))
    engine.step()
    stats = engine.stats()
    assert (stats.step_tokens, stats.forward_time_s, stats.schedule_time_s) == (0, 0, 0)
    assert (stats.num_running, stats.kv_bytes_committed, stats.num_steps) == (1, 500, 1)


def test_without_work_the_executor_is_left_alone() -> None:
    engine, executor = make_engine()
    engine.add(make_request("a", 6))
    engine.abort("a")
    assert not engine.has_work()
    events, stats = engine.step()
    assert (events, stats.step_tokens, executor.num_steps) == ([], 0, 0)


def test_a_refused_request_changes_nothing() -> None:
    engine, _ = make_engine()
    with pytest.raises(InvalidParameter):
        engine.add(make_request("a", []))
    assert not engine.has_work()
    assert engine.stats() == make_engine()[0].stats()


@pytest.mark.parametrize("checks", [True, False])
def test_invariants_are_checked_on_demand(checks: bool) -> None:
    config = make_config(debug_invariants=checks)
    scheduler = make_scheduler(config)
    engine = LLMEngine(scheduler, Executor(config), config)
    engine.add(make_request("a", 6))
    scheduler._pool.allocate()
    if checks:
        with pytest.raises(InvariantViolation):
            engine.step()
    else:
        engine.step()


def test_decisions_are_made_without_torch() -> None:
    code = "import engine.llm.engine, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_first_events_tell_of_waits_and_of_each_chunk_of_the_prompt() -> None:
    engine, _ = make_engine(max_num_batched_tokens=16, enable_prefix_caching=False)
    num_tokens = random.randint(17, 60)
    request = make_request("r", num_tokens, max_tokens=5)
    engine.add(request.after("adapter", time.time() - 0.25))
    events = []
    while engine.has_work():
        events += engine.step()[0]
    waited, *chunks = events[0].phases
    assert waited.name == "adapter"
    assert waited.duration_s >= 0.25
    assert {chunk.name for chunk in chunks} == {"prefill"}
    assert len(chunks) >= num_tokens // 16
    assert sum(chunk.num_tokens for chunk in chunks) == num_tokens
    assert not any(event.phases for event in events[1:])
