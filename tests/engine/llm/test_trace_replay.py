"""A production chat trace through scheduler and cache on virtual time: little KV memory is wasted.

Waste is the share of slots without a token among the slots of held blocks, a shared block counted
once, over all steps (each weighted by its slots). The trace's prompts and answers, up to 9,000
tokens together, are scaled by one factor so that the longest fills the context.
"""

import csv
import random
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import pytest

from engine.llm.decision import ScheduleDecision, SequenceOutput, StepOutput
from engine.llm.scheduler import Scheduler
from tests.helpers import draws
from tests.helpers.llm.paged_executor import make_config, make_request

TRACE = Path(__file__).parents[2] / "data" / "azure_conv_trace.csv"
VOCAB_SIZE = 50_000


@dataclass
class TraceRow:
    arrival_s: float
    prompt_len: int
    output_len: int


def read_trace(max_model_len: int) -> list[TraceRow]:
    with TRACE.open() as file:
        rows = [
            TraceRow(
                datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp(),
                int(row["ContextTokens"]),
                int(row["GeneratedTokens"]),
            )
            for row in csv.DictReader(file)
        ]
    scale = max_model_len / max(row.prompt_len + row.output_len for row in rows)
    return [
        TraceRow(
            row.arrival_s - rows[0].arrival_s,
            max(1, int(row.prompt_len * scale)),
            max(1, int(row.output_len * scale)),
        )
        for row in rows
    ]


@dataclass
class Replay:
    """What a run of the trace came to."""

    num_finished: int = 0
    num_steps: int = 0
    unused: int = 0
    allocated: int = 0
    peak_running: int = 0
    duration_s: float = 0.0

    @property
    def waste(self) -> float:
        return self.unused / self.allocated


def replay(rows: list[TraceRow], max_model_len: int, num_kv_blocks: int) -> Replay:
    """Steps take 10 ms and 0.1 ms per token: about as fast as the trace arrives."""
    config = make_config(
        max_model_len=max_model_len,
        max_num_seqs=64,
        max_num_batched_tokens=512,
        block_size=16,
        num_kv_blocks=num_kv_blocks,
        max_idle_cached_blocks=num_kv_blocks // 8,
        max_num_queued=len(rows),
    )
    scheduler = Scheduler(config, eos_token_ids=(0,), vocab_size=VOCAB_SIZE)
    result, now_s, arrived = Replay(), 0.0, 0
    while arrived < len(rows) or scheduler.has_work():
        if not scheduler.has_work():
            now_s = max(now_s, rows[arrived].arrival_s)
        while arrived < len(rows) and rows[arrived].arrival_s <= now_s:
            row = rows[arrived]
            prompt = range(arrived, arrived + row.prompt_len)
            scheduler.add(make_request(f"r{arrived}", prompt, row.output_len))
            arrived += 1
        decision = scheduler.schedule()
        events = scheduler.commit(decision, one_token_each(decision))
        stats = scheduler.stats()
        result.num_finished += sum(event.finish_reason is not None for event in events)
        result.num_steps += 1
        result.unused += stats.kv_slots_unused
        result.allocated += stats.kv_blocks_used * stats.kv_block_size
        result.peak_running = max(result.peak_running, stats.num_running)
        now_s += 0.010 + 0.0001 * decision.num_tokens
        if result.num_steps % 500 == 0:
            scheduler.check_invariants()
    result.duration_s = now_s
    return result


def one_token_each(decision: ScheduleDecision) -> StepOutput:
    return StepOutput([SequenceOutput(s.seq_id, [1] * s.num_draws) for s in decision.scheduled])


def check(result: Replay, num_requests: int) -> None:
    assert result.num_finished == num_requests
    assert result.peak_running > 5, "too little load to say anything"
    assert result.waste < 0.04, f"{result.waste:.2%} of the allocated slots were unused"


def test_waste_is_under_four_percent() -> None:
    check(replay(read_trace(2048)[:250], 2048, num_kv_blocks=2000), 250)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("max_model_len", "num_kv_blocks"),
    [(2048, 300), (8192, 6000)],
    ids=["2048 with few blocks", "8192"],
)
def test_waste_over_the_whole_trace(max_model_len: int, num_kv_blocks: int) -> None:
    """A quarter of it, from wherever: the whole with ALL_CASES=1."""
    rows = read_trace(max_model_len)
    if not draws.runs_all():
        first = random.randrange(len(rows) - 500)
        start_s = rows[first].arrival_s
        rows = [replace(r, arrival_s=r.arrival_s - start_s) for r in rows[first : first + 500]]
    check(replay(rows, max_model_len, num_kv_blocks), len(rows))


def test_waste_is_measured() -> None:
    """Blocks as large as a request would be mostly empty, and the number must show it."""
    rows = [replace(row, prompt_len=100, output_len=20) for row in read_trace(2048)[:20]]
    result = replay(rows, 2048, num_kv_blocks=2000)
    assert 0.02 < result.waste < 0.10, f"{result.waste:.2%}: about half a block of 7 or 8"
