"""Requests and caches for tests of replicas."""

import random
from collections.abc import Iterable

from engine.contract.generate import ModelInfo, TokenEvent
from engine.llm.decision import SequenceOutput, StepOutput
from engine.llm.scheduler import Scheduler
from engine.worker.replicas.job import Job
from engine.worker.replicas.router import Router

BLOCK_SIZE = 16


def text_model(*, block_size: int = BLOCK_SIZE, adapters: Iterable[str] = ()) -> ModelInfo:
    """A text model."""
    return ModelInfo(
        model="m",
        path="",
        architecture="Fake",
        max_model_len=4096,
        vocab_size=50,
        dtype="float32",
        created=0,
        num_kv_blocks=100,
        kv_block_size=block_size,
        adapters=tuple(adapters),
    )


def blocks(number: int) -> list[bytes]:
    """The hashes of a new text's blocks."""
    return [random.randbytes(8) for _ in range(number)]


def job(chain: list[bytes], *, work: float = 20.0) -> Job:
    """A text with these blocks, and with a token that fills no block."""
    num_tokens = BLOCK_SIZE * len(chain) + 1
    return Job(num_prompt_tokens=num_tokens, work=work, chain=chain, block_size=BLOCK_SIZE)


def serve(router: Router, one: Job, among: list[str]) -> str:
    """Run a request from its choice to its end; returns who took it."""
    name = router.choose(one, among)
    running = router.begin(one, name)
    router.note_first_token(running, one.num_prompt_tokens - running.num_pending)
    router.end(running)
    return name


def finish(scheduler: Scheduler) -> list[TokenEvent]:
    """Take steps, whose draws are all 1, until there is no work; returns the last events."""
    events: list[TokenEvent] = []
    while scheduler.has_work():
        decision = scheduler.schedule()
        outputs = [SequenceOutput(s.seq_id, [1] * s.num_draws) for s in decision.scheduled]
        events += scheduler.commit(decision, StepOutput(outputs))
    return [event for event in events if event.finish_reason is not None]
