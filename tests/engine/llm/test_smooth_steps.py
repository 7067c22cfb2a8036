"""Prompts and streams share the steps: an engine on virtual time, on machines of several shapes.

Each load runs with the target and without. With it the time between tokens must be even, and
prompts must not pay for that.
"""

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import median

import pytest

from engine.contract.generate import EngineStats
from engine.contract.resolved_config import AUTO_STEP_RATIO
from engine.llm.cost.step_cost import TYPICAL, StepWork
from engine.llm.decision import ScheduleDecision, SequenceOutput, StepOutput
from engine.llm.engine import LLMEngine
from engine.llm.scheduler import Scheduler
from loadtest.metrics import percentile
from tests.helpers.llm.paged_executor import make_config, make_request

AUTO = {"max_step_ratio": AUTO_STEP_RATIO}
OFF: dict[str, float] = {}
MACHINES = {
    "many registers": TYPICAL,
    "few registers": (60e-3, 6e-3, 2e-6, 6e-3, 1e-6),
    "a large model": (100e-3, 0.5e-3, 0.1e-6, 0.4e-3, 0.05e-6),
}
MAX_LEN = 8192
LATE_S = 0.5
EVEN = 5.0
"""The most by which a gap may exceed the median. A step takes at most three times as long as one
without prompts in which everybody decodes, and the median is often of a step in which few do.
Without a target it is 12 and more."""


@dataclass
class Machine:
    """An executor whose steps take virtual time by their work; each sequence says 1, 1, 1 …"""

    parts: tuple[float, ...]
    rng: random.Random
    jitter: float = 0.08
    load: Callable[[float], float] = lambda now_s: 1.0
    """How many times slower it is at a time."""
    late_rate: float = 0.0
    """The share of steps in which another process has the processor for half a second."""
    now_s: float = 0.0
    """What the host's clock shows."""
    free_s: float = 0.0
    """The time at which the last launched step ends."""
    steps: list[tuple[float, StepWork]] = field(default_factory=list)
    kv_bytes_committed = 0

    def launch(self, decision: ScheduleDecision) -> "Launched":
        work = StepWork.of(decision)
        seconds = sum(part * size for part, size in zip(self.parts, work.sizes, strict=True))
        seconds *= self.load(self.now_s) * self.rng.lognormvariate(0, self.jitter)
        seconds += LATE_S * (self.rng.random() < self.late_rate)
        self.free_s = max(self.free_s, self.now_s) + seconds
        self.steps.append((seconds, work))
        outputs = [SequenceOutput(s.seq_id, [1] * s.num_draws) for s in decision.scheduled]
        return Launched(self, self.free_s, StepOutput(outputs))


@dataclass
class Launched:
    """A step that the host waits for when it is collected."""

    machine: Machine
    end_s: float
    output: StepOutput

    def collect(self) -> StepOutput:
        self.machine.now_s = max(self.machine.now_s, self.end_s)
        return self.output


@dataclass
class Client:
    """Sends a request, waits for its end, sends the next one; may leave after some tokens."""

    prompt_lens: list[int]
    max_tokens: int = 64
    start_s: float = 0.0
    leaves_after: int | None = None


@dataclass
class Outcome:
    """What the clients saw."""

    first_s: dict[str, float] = field(default_factory=dict)
    """Time to the first token."""
    gaps_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    steps: list[tuple[float, StepWork]] = field(default_factory=list)
    all_stats: list[EngineStats] = field(default_factory=list)
    duration_s: float = 0.0

    def gap(self, q: float, clients: str = "") -> float:
        found = [g for name, gaps in self.gaps_s.items() if name.startswith(clients) for g in gaps]
        return percentile(sorted(found), q)

    @property
    def unevenness(self) -> float:
        return self.gap(99) / self.gap(50)

    @property
    def mean_first_s(self) -> float:
        return sum(self.first_s.values()) / len(self.first_s)


def serve(machine: Machine, clients: dict[str, Client], **knobs: float | int | bool) -> Outcome:
    config = make_config(
        **{
            "max_model_len": MAX_LEN,
            "max_num_seqs": 64,
            "max_num_batched_tokens": 512,
            "block_size": 16,
            "num_kv_blocks": 4000,
            "enable_prefix_caching": False,
        }
        | knobs
    )
    scheduler = Scheduler(config, eos_token_ids=(0,), vocab_size=50)
    engine = LLMEngine(scheduler, machine, config, clock=lambda: machine.now_s)
    outcome, sent_s, last_s = Outcome(), {}, {}
    to_send = {name: list(client.prompt_lens) for name, client in clients.items()}
    due = {name: client.start_s for name, client in clients.items()}
    while due or engine.has_work():
        if not engine.has_work():
            machine.now_s = max(machine.now_s, min(due.values()))
        for name in [name for name, at in due.items() if at <= machine.now_s]:
            request_id = f"{name}/{len(clients[name].prompt_lens) - len(to_send[name])}"
            sent_s[request_id] = due.pop(name)
            prompt = [1] * to_send[name].pop(0)
            engine.add(make_request(request_id, prompt, clients[name].max_tokens))
        events, stats = engine.step()
        outcome.all_stats.append(stats)
        if not config.async_scheduling:
            assert stats.step_tokens <= stats.step_token_budget
        for event in events:
            request_id, name = event.request_id, event.request_id.split("/")[0]
            if request_id in last_s:
                outcome.gaps_s[request_id].append(machine.now_s - last_s[request_id])
            else:
                outcome.first_s[request_id] = machine.now_s - sent_s[request_id]
            last_s[request_id] = machine.now_s
            has_left = len(outcome.gaps_s[request_id]) + 1 == clients[name].leaves_after
            if has_left:
                engine.abort(request_id)
            if (has_left or event.finish_reason) and to_send[name]:
                due[name] = machine.now_s + 0.003
        assert len(machine.steps) < 50_000, "no end in sight"
    outcome.steps, outcome.duration_s = machine.steps, machine.now_s
    return outcome


@pytest.fixture
def seed() -> int:
    return random.getrandbits(32)


def machine(name: str, seed: int, **changes: object) -> Machine:
    return Machine(MACHINES[name], random.Random(seed), **changes)


def closed_loop(num_clients: int, num_each: int, prompt_len: int = 109) -> dict[str, Client]:
    """The workload that servers are compared by."""
    return {f"c{i}": Client([prompt_len] * num_each) for i in range(num_clients)}


@pytest.mark.drawn(1)
@pytest.mark.parametrize("name", MACHINES)
def test_sixteen_clients_get_even_streams_and_prompts_do_not_pay(name: str, seed: int) -> None:
    first_s_ratios = []
    for run in range(3):
        before = serve(machine(name, seed + run), closed_loop(16, 4))
        after = serve(machine(name, seed + run), closed_loop(16, 4), **AUTO)
        assert before.unevenness > 1.2 * after.unevenness, "nothing to smooth"
        assert after.unevenness <= EVEN
        assert after.duration_s <= 1.1 * before.duration_s
        first_s_ratios.append(after.mean_first_s / before.mean_first_s)
    assert median(first_s_ratios) <= 1.0


def test_a_target_in_milliseconds_is_kept(seed: int) -> None:
    after = serve(machine("many registers", seed), closed_loop(16, 4), max_step_ms=80.0)
    assert after.gap(90) < 0.080 * 1.15
    assert after.gap(99) < 0.080 * 1.35


@pytest.mark.drawn(2)
@pytest.mark.parametrize("name", MACHINES)
def test_one_giant_prompt_beside_fifteen_streams(name: str, seed: int) -> None:
    clients = {f"c{i}": Client([60], max_tokens=300) for i in range(15)}
    clients["giant"] = Client([6000], max_tokens=4, start_s=3.0)
    before = serve(machine(name, seed), clients)
    after = serve(machine(name, seed), clients, **AUTO)
    assert after.gap(99, "c") <= EVEN * after.gap(50, "c"), "its chunks still hold up streams"
    assert after.gap(99, "c") < 0.95 * before.gap(99, "c")
    # Two thirds of the time are the prompt's, so that it takes about 1.5 times as long as it would
    # alone. The most in 84 draws is 1.8 times.
    alone = serve(machine(name, seed), {"giant": clients["giant"]})
    assert after.first_s["giant/0"] <= 2.4 * alone.first_s["giant/0"]


@pytest.mark.each_value
@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("prompt_lens", [[6000], [109, 300, 2000]])
def test_prompts_that_hold_up_nobody_take_whole_steps(
    name: str, prompt_lens: list[int], seed: int
) -> None:
    """Texts that are only read, then one client alone: the same steps as without a target."""
    readers = {f"c{i}": Client(prompt_lens, max_tokens=1) for i in range(6)}
    single = {"c": Client(prompt_lens, max_tokens=20)}
    for clients in (readers, single):
        before = serve(machine(name, seed), clients)
        after = serve(machine(name, seed), clients, **AUTO)
        assert [work for _, work in after.steps] == [work for _, work in before.steps]


@pytest.mark.parametrize("step_ms", [0.001, 20.0])
def test_a_target_that_cannot_be_kept_starves_nobody(step_ms: float, seed: int) -> None:
    """Decodes alone take longer. Prompts get a fifth of the time and streams the rest."""
    clients = closed_loop(16, 3) | {"giant": Client([6000], max_tokens=4, start_s=1.0)}
    before = serve(machine("many registers", seed), clients)
    after = serve(machine("many registers", seed), clients, max_step_ms=step_ms)
    assert after.first_s.keys() == before.first_s.keys()
    with_prompts = [work for _, work in after.steps if work.num_decodes and work.num_prompt_tokens]
    assert len(with_prompts) > 100
    assert after.first_s["giant/0"] < 8 * before.first_s["giant/0"]


@pytest.mark.parametrize("knobs", [AUTO, {"max_step_ms": 150.0}], ids=["ratio", "milliseconds"])
def test_a_machine_that_becomes_three_times_slower(knobs: dict[str, float], seed: int) -> None:
    """Somebody else takes the cores at 8 s, for good."""
    load = lambda now_s: 1.0 if now_s < 8.0 else 3.0  # noqa: E731
    after = serve(machine("many registers", seed, load=load), closed_loop(16, 8), **knobs)
    late = [(s, work) for s, work in after.steps if work.num_prompt_tokens and work.num_decodes]
    times, before_s = [], 0.0
    for seconds, work in after.steps:
        before_s += seconds
        if before_s > 10.0 and work.num_decodes > 8:
            times.append(seconds)
    assert len(times) > 100 and late
    times.sort()
    assert percentile(times, 99) <= EVEN * percentile(times, 50)
    if "max_step_ms" in knobs:
        # 16 decodes take 120 ms then: the target leaves a fifth.
        assert percentile(times, 95) < 0.150 * 1.3


def test_steps_that_are_late_now_and_then(seed: int) -> None:
    """Other steps with prompts are about as long as on a quiet machine, and as expected."""

    def median_s(outcome: Outcome) -> float:
        mixed = (s for s, w in outcome.steps if w.num_prompt_tokens and w.num_decodes > 8)
        return percentile(sorted(s for s in mixed if s < LATE_S), 50)

    quiet = serve(machine("many registers", seed), closed_loop(16, 4), **AUTO)
    busy = serve(machine("many registers", seed, late_rate=0.05), closed_loop(16, 4), **AUTO)
    assert 0.7 * median_s(quiet) < median_s(busy) < 1.6 * median_s(quiet)
    ratios = sorted(a.step_measured_s / a.step_predicted_s for a in busy.all_stats[20:])
    assert percentile(ratios, 50) == pytest.approx(1.0, abs=0.1)


def test_clients_that_leave_change_nothing_for_the_others(seed: int) -> None:
    clients = closed_loop(16, 4)
    for i in range(0, 16, 3):
        clients[f"c{i}"] = replace(clients[f"c{i}"], leaves_after=1 + i)
    after = serve(machine("many registers", seed), clients, **AUTO)
    assert after.unevenness <= EVEN
    assert len(after.first_s) == 16 * 4


def test_what_is_published_tells_how_good_the_predictions_are(seed: int) -> None:
    after = serve(machine("few registers", seed, jitter=0.05), closed_loop(16, 4), **AUTO)
    ratios = sorted(a.step_measured_s / a.step_predicted_s for a in after.all_stats[10:])
    assert 0.8 < percentile(ratios, 5) < percentile(ratios, 95) < 1.25
    assert min(a.step_token_budget for a in after.all_stats) < 100
    assert max(a.step_token_budget for a in after.all_stats) == 512


@pytest.mark.parametrize("knobs", [AUTO, {"max_step_ms": 50.0}])
def test_steps_launched_ahead_are_timed_too(knobs: dict[str, float], seed: int) -> None:
    """Their time begins at the end of the step before, not at a launch that waits for it."""
    after = serve(
        machine("many registers", seed), closed_loop(16, 4), **knobs, async_scheduling=True
    )
    assert after.unevenness <= EVEN
    assert after.gap(99) < 0.2
