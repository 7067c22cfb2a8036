"""Whatever goes wrong for one request ends that request: its neighbours do not notice.

A fault is an exception out of one of the engine's own functions, raised when it works on the
culprit (alone or in a batch), from the first time on or in the middle of its answer.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from structlog.testing import capture_logs

from engine.contract.generate import GenerateRequest
from engine.contract.request import FinishReason
from engine.errors import InvariantViolation
from engine.llm.computed_prefixes import ComputedPrefixes
from engine.llm.decision import ScheduleDecision, StepOutput
from engine.llm.request import Sequence
from engine.llm.runner import model_runner
from engine.llm.runner.model_runner import DrawnTokens, ModelRunner
from engine.llm.sampling.logits_processors import LogitBias, ProcessorChain
from engine.llm.sampling.sampler import Sampler
from engine.llm.sequences import Sequences
from tests.helpers.llm.paged_executor import Answer, PagedExecutor, PagedStep, answer_alone
from tests.helpers.llm.requests import texts
from tests.helpers.llm.sessions import EngineSession, run_sessions

CULPRIT = 2
"""The sequence id of the third request to arrive."""


class Fault(Exception):
    """What is injected."""


def holds(*things: object) -> bool:
    """Whether the culprit is in what a function was given."""
    for thing in things:
        match thing:
            case Sequence(seq_id=seq_id) if seq_id == CULPRIT:
                return True
            case ScheduleDecision(scheduled=scheduled):
                if holds(scheduled):
                    return True
            case model_runner.StepRows(spans=spans):
                if holds(spans):
                    return True
            case DrawnTokens(places=places):
                if CULPRIT in places:
                    return True
            case list() | tuple():
                if holds(*thing):
                    return True
            case _:
                if not isinstance(thing, Sequence) and getattr(thing, "seq_id", None) == CULPRIT:
                    return True
    return False


STAGES: dict[str, tuple[object, str]] = {
    "schedule": (ComputedPrefixes, "find"),
    "decide": (Sequence, "launch"),
    "announce": (Sequence, "announce"),
    "start": (Sequences, "start"),
    "sampling state": (Sampler, "add"),
    "processor state": (LogitBias, "add"),
    "batch layout": (model_runner, "lay_out"),
    "inputs": (ModelRunner, "_prepare"),
    "logits": (ModelRunner, "_logits_to_sample"),
    "prompt scores": (ModelRunner, "_score_prompts"),
    "logits processors": (ProcessorChain, "edit"),
    "sampling": (Sampler, "launch"),
    "tokens": (DrawnTokens, "add_to"),
    "history": (ProcessorChain, "advance"),
    "commit": (Sequence, "land"),
    "block hashes": (Sequence, "extend_chain"),
    "event": (Sequence, "take"),
}
ONCE = {"announce", "start", "schedule", "sampling state", "processor state"}
"""Called once per sequence, so that it cannot fail in the middle."""


@pytest.fixture(scope="module")
def folder(tiny_llama):
    return tiny_llama(seed=11)


@pytest.fixture(scope="module")
def requests(engines):
    rng = random.Random(5)
    prompts = [[rng.randrange(400) for _ in range(length)] for length in (40, 23, 30, 7, 18)]
    extras = [{}, {"temperature": 1.0, "seed": 3, "repetition_penalty": 1.2}, {}, {"n": 2}, {}]
    return [
        engines.request(str(i), prompt, ignore_eos=True, logprobs=1, logit_bias={i: 1.0}, **extra)
        for i, (prompt, extra) in enumerate(zip(prompts, extras, strict=True))
    ]


@pytest.fixture(scope="module")
def expected(engines, folder, requests):
    """What each gets without a fault."""
    return engines.run(engines.make(folder), requests)


@dataclass
class Injection:
    """Raises `error` at a stage that has the culprit in hand, after letting it pass some times."""

    error: Callable[[], Exception] = Fault
    after: int = 0
    num_raised: int = 0

    def install(self, monkeypatch: pytest.MonkeyPatch, target: object, name: str) -> None:
        original = getattr(target, name)

        def broken(*args: object, **kwargs: object) -> object:
            if holds(*args):
                self.after -= 1
                if self.after < 0:
                    self.num_raised += 1
                    raise self.error()
            return original(*args, **kwargs)

        monkeypatch.setattr(target, name, broken)


def run(engines, engine, requests):
    """Completions, the events of failures, and the log."""
    failures, step = [], engine.step

    def watched():
        events, stats = step()
        failures.extend(event for event in events if event.failure is not None)
        return events, stats

    engine.step = watched
    with capture_logs() as logs:
        done = engines.run(engine, requests)
    return done, failures, logs


def check_failure(failures, logs, code="request_failed"):
    """The culprit's request ended, with a reference to one line of the log."""
    [last] = failures
    assert (last.request_id, last.finish_reason) == (str(CULPRIT), FinishReason.ERROR)
    assert last.failure.code == code
    reference = re.search(r"under reference (\w{12})$", last.failure.message)
    [line] = [entry for entry in logs if entry.get("reference") == reference[1]]
    assert (line["log_level"], line["request_id"]) == ("error", str(CULPRIT))
    assert [entry["log_level"] for entry in logs].count("error") == 1


def check_neighbours(done, expected):
    for key, completion in expected.items():
        if key[0] != str(CULPRIT):
            assert done[key].token_ids == completion.token_ids, key
            assert done[key].finish_reason == completion.finish_reason
            assert len(done[key].logprobs) == len(completion.token_ids)


def check_clean(engine):
    """No block is held, nobody is left, and the executor has forgotten all of them."""
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.kv_blocks_used) == (0, 0, 0)
    scheduler, runner = engine._scheduler, engine._executor
    scheduler.check_invariants()
    assert not scheduler._sequences._requests
    runner._apply_changes(ScheduleDecision(finished=scheduler._sequences.take_finished()))
    assert not runner._sampler._states
    assert not runner._sampler._processors._by_sequence


def fail(*args: object) -> None:
    raise Fault


CASES = [(stage, after) for stage in STAGES for after in (0, 3) if not (after and stage in ONCE)]


@pytest.mark.each_value
@pytest.mark.parametrize("overlap", ["off", "on"])
@pytest.mark.parametrize(("stage", "after"), CASES)
def test_a_fault_ends_its_request_alone(
    engines, folder, requests, expected, monkeypatch, stage, after, overlap
):
    engine = engines.make(folder, async_scheduling=overlap)
    injection = Injection(after=after)
    injection.install(monkeypatch, *STAGES[stage])
    done, failures, logs = run(engines, engine, requests)
    assert injection.num_raised >= 1
    check_failure(failures, logs)
    check_neighbours(done, expected)
    monkeypatch.undo()
    check_clean(engine)
    again = engines.run(engine, [replace(requests[CULPRIT], request_id="again")])
    assert again["again", 0].token_ids == expected[str(CULPRIT), 0].token_ids


@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
        MemoryError,
    ],
    ids=["cuda", "cpu", "host"],
)
def test_a_request_for_which_memory_runs_out_is_asked_to_come_again(
    engines, folder, requests, expected, monkeypatch, error
):
    engine = engines.make(folder)
    Injection(error, after=2).install(monkeypatch, ModelRunner, "_prepare")
    done, failures, logs = run(engines, engine, requests)
    check_failure(failures, logs, code="over_capacity")
    check_neighbours(done, expected)


def test_memory_that_runs_out_for_the_batch_only_ends_nobody(
    engines, folder, requests, expected, monkeypatch
):
    engine = engines.make(folder)
    original, num_raised = ModelRunner._prepare, 0

    def prepare(self, rows, before):
        nonlocal num_raised
        if len(rows.spans) > 3:
            num_raised += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, rows, before)

    monkeypatch.setattr(ModelRunner, "_prepare", prepare)
    done, failures, _ = run(engines, engine, requests)
    assert num_raised > 1 and not failures
    assert texts(done) == texts(expected)


@pytest.mark.parametrize("stage", ["schedule", "inputs", "tokens", "commit"])
def test_a_fault_for_everybody_ends_everybody_and_the_engine_goes_on(
    engines, folder, requests, expected, monkeypatch, stage
):
    engine = engines.make(folder)
    monkeypatch.setattr(*STAGES[stage], fail)
    _, failures, logs = run(engines, engine, requests)
    assert sorted(f.request_id for f in failures) == ["0", "1", "2", "3", "3", "4"]
    assert len({entry["reference"] for entry in logs if "reference" in entry}) == 6
    monkeypatch.undo()
    done = engines.run(engine, requests)
    assert texts(done) == texts(expected)
    check_clean(engine)


def test_a_request_that_cannot_be_taken_in_leaves_nothing(engines, folder, requests, monkeypatch):
    engine = engines.make(folder)
    monkeypatch.setattr("engine.llm.sequences.SequenceBlocks", fail)
    with pytest.raises(Fault):
        engine.add(requests[0])
    monkeypatch.undo()
    assert not engine.has_work()
    check_clean(engine)


def test_an_end_that_fails_loses_no_answer(engines, folder, requests, expected, monkeypatch):
    engine = engines.make(folder, async_scheduling="on")
    injection = Injection()
    injection.install(monkeypatch, Sequences, "finish")
    done, failures, logs = run(engines, engine, requests)
    assert injection.num_raised == 1 and not failures
    assert [entry["event"] for entry in logs] == ["a request could not be ended cleanly"]
    assert texts(done) == texts(expected)
    check_clean(engine)


def test_an_abort_that_fails_ends_the_request_all_the_same(
    engines, folder, requests, expected, monkeypatch
):
    engine = engines.make(folder, async_scheduling="on")
    for request in requests:
        engine.add(request)
    engine.step()
    Injection().install(monkeypatch, Sequences, "finish")
    engine.abort(str(CULPRIT))
    monkeypatch.undo()
    texts = {}
    while engine.has_work():
        for event in engine.step()[0]:
            texts.setdefault((event.request_id, event.index), []).extend(event.token_ids)
    for key, tokens in texts.items():
        assert key[0] != str(CULPRIT)
        whole = expected[key].token_ids
        assert tokens == whole[len(whole) - len(tokens) :]
    check_clean(engine)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        torch.AcceleratorError("unspecified launch failure"),
        RuntimeError("Triton Error [CUDA]: misaligned address"),
    ],
    ids=["cuda", "accelerator", "triton"],
)
def test_a_poisoned_device_ends_the_engine(engines, folder, requests, monkeypatch, error):
    engine = engines.make(folder)
    Injection(lambda: error, after=1).install(monkeypatch, ModelRunner, "_prepare")
    with pytest.raises(type(error), match=str(error)[:20].replace("[", r"\[")):
        engines.run(engine, requests)


def test_a_device_that_answers_is_not_poisoned(engines, folder, requests, expected, monkeypatch):
    """A launch with bad arguments leaves such a device, for example."""
    monkeypatch.setattr("engine.runtime.fault._device_answers", lambda: True)
    engine = engines.make(folder)
    error = RuntimeError("CUDA error: invalid configuration argument")
    Injection(lambda: error, after=1).install(monkeypatch, ModelRunner, "_prepare")
    done, failures, logs = run(engines, engine, requests)
    check_failure(failures, logs)
    check_neighbours(done, expected)


def test_broken_books_are_not_gone_on_with(engines, folder, requests):
    engine = engines.make(folder, debug_invariants=True)
    engine.add(requests[0])
    engine._scheduler._pool.allocate()
    with pytest.raises(InvariantViolation):
        engine.step()


class FaultyExecutor(PagedExecutor):
    """Fails steps at launch or when they are collected: those in which some sequence has said as
    much as it may, and some steps of several requests for no reason at all."""

    kv_bytes_committed = 0
    rng = random.Random(0)
    limits: dict[int, int] = {}  # noqa: RUF012  (each test sets its own)
    """The number of tokens after which a request's sequences fail, by its seed."""
    num_faults = 0

    def launch(self, decision: ScheduleDecision) -> "FaultyStep":
        for seq_id in decision.finished:
            self.sequences.setdefault(seq_id, None)  # announced by a step that failed at launch
        for new in decision.new:
            self.sequences.pop(new.seq_id, None)  # announced again
        new_of = {seq_id: state.new for seq_id, state in self.sequences.items() if state}
        new_of |= {new.seq_id: new for new in decision.new}
        num_requests = len({new_of[entry.seq_id].seed for entry in decision.scheduled})
        fails = num_requests > 1 and self.rng.random() < 0.1
        at_launch = self.rng.random() < 0.5
        for entry in decision.scheduled:
            state, new = self.sequences.get(entry.seq_id), new_of[entry.seq_id]
            # With drafts it would draw more: a suspect that runs alone has none.
            most = entry.num_output_tokens + len(entry.drafts)
            fails |= most >= self.limits.get(new.seed, 1000)
            if state:  # what was drawn by steps that failed is forgotten
                del state.history[len(new.prompt_token_ids) + entry.num_output_tokens :]
        self.num_faults += fails
        if fails and at_launch:
            for seq_id in decision.finished:
                del self.sequences[seq_id]
            self.kept -= set(decision.dropped)
            # Encoding may have failed, after some parts.
            self.kept |= {one.digest for one in decision.encoded if self.rng.random() < 0.5}
            raise Fault("at launch")
        return FaultyStep(super().launch(decision), fails)


@dataclass
class FaultyStep:
    step: PagedStep
    fails: bool

    def collect(self) -> StepOutput:
        output = self.step.collect()
        if self.fails:
            raise Fault("when collected")
        return output


class FaultySession(EngineSession):
    """A random run with faults, its steps launched ahead or not."""

    most_steps = 500_000
    """Budgets of two tokens are among them: a long text that is tried alone takes 200 steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.run_by_engine(FaultyExecutor, async_scheduling=self.rng.random() < 0.5)
        self.executor.rng = self.rng
        self.executor.limits = {}

    def step(self, abort_rate: float) -> None:
        for request in self.added.values():
            if int(request.request_id[1:]) % 4 == 0:
                self.executor.limits[request.sampling.seed] = request.priority + 2
        super().step(abort_rate)

    def check_end(self) -> None:
        self.executor.sequences = dict.fromkeys(self.scheduler._sequences._finished)
        super().check_end()
        self.seen["faults"] += self.executor.num_faults

    def check_answer(self, request: GenerateRequest, index: int) -> None:
        limit = self.executor.limits.get(request.sampling.seed)
        answer = self.answers.get((request.request_id, index), Answer())
        expected = answer_alone(request, index, self.config, self.executor.error_rate, self.windows)
        as_expected = (answer.token_ids, answer.error_code) == (
            expected.token_ids,
            expected.error_code,
        )
        if limit is not None and answer.error_code == "request_failed" and not as_expected:
            # A good step is lost too if the one launched behind it fails. Beams come at the end.
            limit = 0 if request.sampling.beams is not None else limit
            assert answer.token_ids in (
                expected.token_ids[:limit],
                expected.token_ids[: max(0, limit - 1)],
            )
            self.seen["culprits"] += 1
            return
        super().check_answer(request, index)


def test_any_load_survives_faults() -> None:
    """Everybody but the culprits gets the very tokens and scores that they would get alone."""
    with capture_logs():
        seen = run_sessions(FaultySession, 60)
    assert seen.keys() >= {"faults", "culprits", "preemptions", "copies", "cached tokens",
                              "aborted", "scored prompts", "stop", "length"}  # fmt: skip
