"""The scheduler's rules as tables.

A step is written as `a 0:4, b 6:7* | 3→5 | +c`: tokens 0 to 4 of request a, the seventh token of b,
after which (*) a new one is drawn; block 3 is copied to 5; completion `c.1` is index 1 of c.
"""

import random
from dataclasses import replace

import pytest

from engine.contract.generate import EngineStats, TokenEvent
from engine.contract.groups import BeamParams
from engine.contract.request import FinishReason
from engine.errors import (
    ContextLengthExceeded,
    EngineError,
    InvalidParameter,
    InvariantViolation,
    OutOfBlocks,
    QueueFull,
)
from engine.llm.decision import ScheduleDecision, SequenceOutput, StepOutput
from engine.llm.scheduler import Scheduler
from tests.helpers.llm.paged_executor import (
    EOS,
    Answer,
    Answers,
    Guesser,
    PagedExecutor,
    answer_alone,
    make_config,
    make_request,
    make_scheduler,
    run_all,
    run_step,
    score,
)


class Bench:
    """A scheduler, the checking executor and what the clients got."""

    def __init__(self, **changes: object) -> None:
        self.config = make_config(**changes)
        self.scheduler = make_scheduler(self.config)
        self.executor = PagedExecutor(self.config)
        self.answers: Answers = {}

    def add(self, request_id: str, prompt: object, max_tokens: int = 4, **more: object) -> None:
        self.scheduler.add(make_request(request_id, prompt, max_tokens, seed=0, **more))

    def run(self, request_id: str, prompt: object, max_tokens: int = 4, **more: object) -> Answers:
        """Add a request, and step until it and all others have ended."""
        self.add(request_id, prompt, max_tokens, **more)
        return self.finish()

    def step(self) -> str:
        names = {}
        for sequence in self.scheduler._sequences._by_id.values():
            suffix = f".{sequence.index}" if sequence.index else ""
            names[sequence.seq_id] = sequence.owner.request.request_id + suffix
        return show(run_step(self.scheduler, self.executor, self.answers), names)

    def steps(self, count: int) -> list[str]:
        return [self.step() for _ in range(count)]

    def finish(self) -> Answers:
        while self.scheduler.has_work():
            self.step()
        return self.answers

    def cached(self, request_id: str) -> int:
        return self.answers[request_id, 0].num_cached_tokens

    @property
    def stats(self) -> EngineStats:
        return self.scheduler.stats()


def show(decision: ScheduleDecision, names: dict[int, str]) -> str:
    rows = [
        f"{names[s.seq_id]} {s.start}:{s.start + len(s.token_ids)}{'*' * s.num_draws}"
        for s in decision.scheduled
    ]
    copies = [f"{source}→{destination}" for source, destination in decision.copies]
    return " | ".join([", ".join(rows), *copies])


def commit(scheduler: Scheduler, decision: ScheduleDecision, drawn: list[int]) -> list[TokenEvent]:
    """Every sequence that draws gets the same tokens."""
    outputs = [
        SequenceOutput(
            entry.seq_id, drawn[: entry.num_draws], [score(0, t) for t in drawn[: entry.num_draws]]
        )
        for entry in decision.scheduled
    ]
    return scheduler.commit(decision, StepOutput(outputs))


class TestBudget:
    def test_a_prompt_is_computed_in_chunks_and_then_decodes(self) -> None:
        bench = Bench(max_num_batched_tokens=8)
        bench.add("a", 20, max_tokens=3)
        assert bench.steps(5) == ["a 0:8", "a 8:16", "a 16:20*", "a 20:21*", "a 21:22*"]
        assert not bench.scheduler.has_work()
        assert bench.answers["a", 0].finish_reason == "length"

    def test_decodes_go_before_older_prompts(self) -> None:
        bench = Bench(max_num_batched_tokens=16)
        bench.add("long", 60)
        bench.step()
        bench.add("b", 2)
        assert bench.step() == "long 16:30, b 0:2*"
        assert bench.step() == "b 2:3*, long 30:45"
        assert bench.step() == "b 3:4*, long 45:60*"
        assert bench.step() == "long 60:61*, b 4:5*", "now both miss one token: by rank"

    def test_a_long_prompt_leaves_a_quarter_to_shorter_ones(self) -> None:
        bench = Bench(max_num_batched_tokens=32, max_model_len=256, num_kv_blocks=200)
        bench.add("long", 200)
        assert bench.step() == "long 0:32", "nobody else wants it"
        for name, length in (("b", 5), ("c", 3), ("d", 100)):
            bench.add(name, length)
        assert bench.step() == "long 32:56, b 0:5*, c 0:3*"
        assert bench.step() == "b 5:6*, c 3:4*, long 56:79, d 0:7"
        assert bench.step() == "b 6:7*, c 4:5*, long 79:102, d 7:14"

    def test_a_prompt_that_ends_in_this_step_leaves_nothing(self) -> None:
        bench = Bench(max_num_batched_tokens=32)
        bench.add("all", 32)
        bench.add("b", 9)
        assert bench.steps(2) == ["all 0:32*", "all 32:33*, b 0:9*"]

    def test_a_share_is_at_least_a_block(self) -> None:
        bench = Bench(max_num_batched_tokens=8, block_size=4)
        bench.add("a", 30)
        bench.add("b", 30)
        assert bench.steps(4) == ["a 0:8", "a 8:16", "a 16:24", "a 24:30*, b 0:2"]

    def test_each_long_prompt_leaves_a_quarter_of_what_is_left(self) -> None:
        bench = Bench(max_num_batched_tokens=64, num_kv_blocks=800, max_model_len=300)
        for name in ("a", "b", "c", "d"):
            bench.add(name, 290)
        assert bench.step() == "a 0:48, b 0:12, c 0:4"
        bench.scheduler.abort("c")
        bench.add("short", 2, max_tokens=1)
        bench.scheduler.abort("d")
        assert bench.step() == "a 48:98, b 12:24, short 0:2*", "the rest goes to the first"

    def test_every_running_sequence_decodes_in_every_step(self) -> None:
        bench = Bench(max_num_batched_tokens=3, max_num_seqs=8)
        for name in "abcde":
            bench.add(name, 1, max_tokens=3)
        assert bench.steps(4) == [
            "a 0:1*, b 0:1*, c 0:1*",
            "a 1:2*, b 1:2*, c 1:2*",
            "a 2:3*, b 2:3*, c 2:3*",
            "d 0:1*, e 0:1*",
        ]

    def test_places_are_limited(self) -> None:
        bench = Bench(max_num_seqs=2)
        for name in "abc":
            bench.add(name, 3, max_tokens=2)
        assert bench.steps(3) == ["a 0:3*, b 0:3*", "a 3:4*, b 3:4*", "c 0:3*"]

    def test_nothing_to_do(self) -> None:
        scheduler = make_scheduler()
        assert not scheduler.has_work()
        decision = scheduler.schedule()
        assert decision == ScheduleDecision()
        assert scheduler.commit(decision, StepOutput([])) == []
        scheduler.check_invariants()


class TestGroups:
    def test_they_share_whole_blocks_of_what_is_cached_so_that_none_is_copied(self) -> None:
        bench = Bench(block_size=4)
        bench.run("a", range(16), max_tokens=1)
        bench.add("b", range(16), max_tokens=2, beams=BeamParams(width=2))
        assert [one.start for one in bench.scheduler.schedule().scheduled] == [12]


class TestTrials:
    def test_each_is_tried_until_it_draws(self) -> None:
        bench = Bench(max_num_batched_tokens=8, enable_prefix_caching=False)
        bench.add("a", 20)
        bench.add("b", 3)
        bench.steps(3)
        both = bench.scheduler.schedule()
        assert len(both.scheduled) == 2
        bench.scheduler.recover(RuntimeError(), both)
        assert bench.steps(4) == ["a 0:8", "a 8:16", "a 16:21*", "b 0:4*"]


class TestOrder:
    def test_first_come_first_served(self) -> None:
        bench = Bench(max_num_seqs=1)
        for name, priority in (("a", 9), ("b", 0)):
            bench.add(name, 2, max_tokens=1, priority=priority)
        assert bench.steps(2) == ["a 0:2*", "b 0:2*"]

    def test_priority(self) -> None:
        bench = Bench(max_num_seqs=1, scheduling_policy="priority")
        for name, priority in (("a", 0), ("b", 3), ("c", -1), ("d", 0)):
            bench.add(name, 2, max_tokens=1, priority=priority)
        assert bench.steps(4) == ["c 0:2*", "a 0:2*", "d 0:2*", "b 0:2*"]

    def test_a_request_that_does_not_fit_yet_is_not_passed_by(self) -> None:
        bench = Bench(num_kv_blocks=6, max_model_len=24)
        bench.add("a", 11, max_tokens=5)
        bench.step()
        bench.add("big", 16)
        bench.add("small", 1)
        assert bench.step() == "a 11:12*"
        assert bench.stats.num_waiting == 2
        bench.finish()
        assert list(bench.answers) == [("a", 0), ("big", 0), ("small", 0)]


class TestPrefixCache:
    def test_a_repeated_beginning_is_not_computed_again(self) -> None:
        bench = Bench()
        bench.run("a", range(10), max_tokens=1)
        bench.add("b", [*range(8), 30, 31, 32], max_tokens=1)
        assert bench.step() == "b 8:11*"
        assert bench.cached("b") == 8
        stats = bench.stats
        assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (21, 8)

    def test_a_whole_cached_prompt_still_computes_its_last_token(self) -> None:
        bench = Bench()
        bench.run("a", range(8), max_tokens=1)
        bench.add("b", range(8), max_tokens=3)
        assert bench.step() == "b 7:8*", "in place: nobody else holds the block"
        bench.add("c", range(8), max_tokens=1)
        assert bench.step() == "b 8:9*, c 7:8* | 1→3", "copied: b holds the block"
        assert (bench.cached("b"), bench.cached("c")) == (7, 7)

    def test_two_equal_prompts_in_one_step_share_only_what_is_computed(self) -> None:
        bench = Bench()
        bench.add("a", range(8), max_tokens=1)
        bench.add("b", range(8), max_tokens=1)
        assert bench.step() == "a 0:8*, b 0:8*"
        bench.add("c", range(8), max_tokens=1)
        bench.add("d", range(8), max_tokens=1)
        # c writes the last block, so d does not find it.
        assert bench.step() == "c 7:8*, d 4:8*"

    def test_answers_are_cached_for_the_next_turn(self) -> None:
        bench = Bench()
        bench.run("a", range(6), max_tokens=6)
        said = bench.answers["a", 0].token_ids
        bench.add("b", [*range(6), *said, 1, 2, 3])
        # Eleven tokens were computed, the last one drawn only.
        assert bench.step() == "b 8:15*"

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ({}, {"cache_salt": "x"}),
            ({"cache_salt": "x"}, {"cache_salt": "y"}),
            ({}, {"adapter": "x"}),
            ({"cache_salt": "x"}, {"adapter": "x"}),
        ],
    )
    def test_salts_and_adapters_share_nothing(self, first: dict, second: dict) -> None:
        bench = Bench()
        bench.add("a", range(8), max_tokens=1, **first)
        bench.add("b", range(8), max_tokens=1, **second)
        bench.step()
        for name, key in (("c", first), ("d", second)):
            bench.add(name, range(8), max_tokens=1, **key)
        bench.finish()
        assert [bench.cached(name) for name in "abcd"] == [0, 0, 7, 7]

        bench.run("e", range(8), max_tokens=1, cache_salt="z", adapter="z")
        assert bench.cached("e") == 0

    def test_off_switch(self) -> None:
        bench = Bench(enable_prefix_caching=False, max_idle_cached_blocks=0)
        for name in "ab":
            bench.run(name, range(9), max_tokens=1)
        assert bench.cached("b") == 0
        assert bench.stats.prefix_cache_queries == 0

    def test_no_idle_blocks_allowed_still_shares_between_running_ones(self) -> None:
        bench = Bench(max_idle_cached_blocks=0)
        bench.add("a", range(9), max_tokens=3)
        bench.step()
        bench.run("b", range(9), max_tokens=1)
        bench.run("c", range(9), max_tokens=1)
        assert [bench.cached(name) for name in "abc"] == [0, 8, 0]


class TestSeveralCompletions:
    def test_they_share_the_prompt_and_draw_their_own_first_token(self) -> None:
        bench = Bench()
        bench.add("a", 6, max_tokens=2, n=3)
        assert bench.step() == "a 0:6*"
        assert bench.stats.num_waiting == 2
        assert bench.step() == "a 6:7*, a.1 5:6*, a.2 5:6* | 1→2 | 1→3"
        assert bench.stats.kv_blocks_used == 3, "the full block counts once; a has ended"
        assert bench.step() == "a.1 6:7*, a.2 6:7*"
        for index in range(3):
            request = make_request("a", 6, 2, n=3, seed=0)
            assert bench.answers["a", index].token_ids == (
                answer_alone(request, index, bench.config).token_ids
            )
            assert bench.answers["a", index].num_cached_tokens == 0, "counted once per request"
        assert bench.stats.prefix_cache_queries == 6

    @pytest.mark.parametrize(
        ("length", "second"),
        [
            (8, "a 8:9*, a.1 7:8* | 1→3"),
            (9, "a 9:10*, a.1 8:9* | 2→3"),
            (1, "a 1:2*, a.1 0:1*"),
            (4, "a 4:5*, a.1 3:4* | 0→2"),
            (5, "a 5:6*, a.1 4:5* | 1→2"),
        ],
    )
    def test_block_borders(self, length: int, second: str) -> None:
        bench = Bench()
        bench.add("a", length, max_tokens=3, n=2)
        bench.step()
        step = bench.step()
        if length % 4 == 1:  # the last prompt token begins a block: nothing shared is written
            step, second = step.split(" | ")[0], second.split(" | ")[0]
        assert step == second
        bench.finish()

    def test_what_the_request_found_in_the_cache_is_told_with_each(self) -> None:
        bench = Bench()
        for name in "ab":
            bench.run(name, range(9), max_tokens=2, n=2)
        assert [bench.answers["b", index].num_cached_tokens for index in range(2)] == [8, 8]
        stats = bench.stats
        assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (18, 8)

    def test_they_wait_while_the_prompt_is_computed(self) -> None:
        bench = Bench(max_num_batched_tokens=8)
        bench.add("a", 10, n=2)
        assert bench.step() == "a 0:8"
        assert bench.stats.num_waiting == 1
        assert bench.step() == "a 8:10*"

    def test_they_go_before_later_requests(self) -> None:
        bench = Bench(max_num_seqs=2)
        bench.add("a", 3, max_tokens=3, n=3)
        bench.add("b", 3, max_tokens=1)
        assert bench.steps(5) == [
            "a 0:3*, b 0:3*",
            "a 3:4*, a.1 2:3* | 0→1",
            "a 4:5*, a.1 3:4*",
            "a.1 4:5*, a.2 2:3* | 1→3",
            "a.2 3:4*",
        ]

    @pytest.mark.parametrize(("caching", "start"), [(True, 4), (False, 0)])
    def test_if_the_first_has_ended_they_use_the_cache(self, caching: bool, start: int) -> None:
        bench = Bench(enable_prefix_caching=caching)
        bench.add("a", 6, max_tokens=1, n=2)
        assert bench.steps(2) == ["a 0:6*", f"a.1 {start}:6*"]


class TestPreemption:
    def test_the_latest_gives_way_and_keeps_what_it_said(self) -> None:
        bench = Bench(num_kv_blocks=5, max_model_len=20, enable_prefix_caching=False)
        bench.add("a", 7, max_tokens=10)
        bench.add("b", 6, max_tokens=8)
        steps = bench.steps(3)
        assert steps == ["a 0:7*, b 0:6*", "a 7:8*, b 6:7*", "a 8:9*, b 7:8*"]
        assert bench.step() == "a 9:10*", "one block is left for two: b has to wait for it"
        assert bench.stats.num_preemptions == 0
        bench.steps(2)
        assert bench.step() == "a 12:13*"
        stats = bench.stats
        assert (stats.num_preemptions, stats.num_running, stats.num_waiting) == (1, 1, 1)
        answers = bench.finish()
        for name, length, max_tokens in (("a", 7, 10), ("b", 6, 8)):
            request = make_request(name, length, max_tokens, seed=0)
            assert answers[name, 0].token_ids == answer_alone(request, 0, bench.config).token_ids

    def test_the_preempted_go_before_the_waiting(self) -> None:
        bench = Bench(num_kv_blocks=5, max_model_len=20, max_num_seqs=2)
        bench.add("a", 7, max_tokens=10)
        bench.add("b", 6, max_tokens=8)
        bench.run("c", 1, max_tokens=1)
        assert bench.stats.num_preemptions == 1
        assert list(bench.answers) == [("a", 0), ("b", 0), ("c", 0)]

    def test_its_own_blocks_may_still_be_cached(self) -> None:
        bench = Bench(num_kv_blocks=5, max_model_len=20)
        bench.add("a", 7, max_tokens=10)
        bench.add("b", 6, max_tokens=8)
        bench.steps(7)
        while "b" not in (step := bench.step()):
            pass
        assert step.startswith("b 4:"), "the first block survived, the second was needed"
        bench.finish()
        assert bench.cached("b") == 0, "usage counts what was found at first"

    def test_a_priority_request_takes_the_blocks_of_less_important_ones(self) -> None:
        bench = Bench(num_kv_blocks=6, max_model_len=24, scheduling_policy="priority")
        bench.add("low", 9, max_tokens=4, priority=5)
        bench.add("mid", 5, max_tokens=4, priority=1)
        assert bench.step() == "mid 0:5*, low 0:9*"
        bench.add("high", 8, priority=0, max_tokens=1)
        assert bench.step() == "mid 5:6*, high 0:8*", "low's token is withdrawn"
        assert bench.stats.num_preemptions == 1
        bench.finish()

    def test_nobody_is_displaced_in_vain(self) -> None:
        bench = Bench(num_kv_blocks=6, max_model_len=24, scheduling_policy="priority")
        bench.add("peer", 9, max_tokens=9, priority=0)
        bench.add("low", 5, max_tokens=9, priority=5)
        bench.step()
        bench.add("high", 15, priority=0)
        assert bench.step() == "peer 9:10*, low 5:6*", "low's two blocks would not do"
        assert bench.stats.num_preemptions == 0
        bench.finish()

    def test_shared_blocks_are_not_counted_on(self) -> None:
        bench = Bench(num_kv_blocks=8, max_model_len=32, scheduling_policy="priority")
        bench.add("peer", range(16), max_tokens=9, priority=0)
        bench.step()
        bench.add("low", [*range(16), 1], max_tokens=9, priority=5)
        bench.step()
        bench.add("high", range(20, 36), priority=0, max_tokens=1)
        # low holds five blocks, but four of them are peer's too.
        assert bench.step().startswith("peer 17:18*")
        bench.finish()
        assert bench.answers["high", 0].finish_reason == "length"

    def test_running_prompts_are_promised_their_blocks(self) -> None:
        bench = Bench(num_kv_blocks=10, max_model_len=40, max_num_batched_tokens=16)
        bench.add("a", 28, max_tokens=1)
        bench.add("b", 16, max_tokens=1)
        assert bench.step() == "a 0:16", "seven of ten blocks are a's in the end, b needs four"
        assert bench.steps(2) == ["a 16:28*", "b 0:16*"]
        assert bench.stats.num_preemptions == 0

    def test_running_sequences_are_left_a_block_to_grow(self) -> None:
        bench = Bench(num_kv_blocks=6, max_model_len=24)
        bench.add("a", 8, max_tokens=9)
        bench.add("b", 15, max_tokens=1)
        assert bench.step() == "a 0:8*", "the four free blocks would do for b, but not for long"
        bench.finish()
        assert bench.stats.num_preemptions == 0


class FixedDrafts(Guesser):
    """A drafter that always expects the same tokens, whatever the text."""

    def __init__(self, token_ids: list[int]) -> None:
        super().__init__(random.Random(), is_right=0.0)
        self.token_ids = token_ids
        self.learned: list[object] = []

    def draft(self, decodes, num_rows, price):
        for sequence in decodes:
            drafts = self.token_ids[: min(num_rows, sequence.num_draftable)]
            num_rows -= len(drafts)
            if drafts:
                yield sequence, drafts

    def learn(self, sequence, num_drafts, num_accepted):
        self.learned.append((num_drafts, num_accepted))

    def forget(self, sequence):
        self.learned.append(sequence.seq_id)


class TestEnding:
    @pytest.mark.parametrize(
        ("sampling", "drawn", "kept", "reason", "stop_token_id"),
        [
            ({"ignore_eos": False}, [5, EOS, 7], [5, EOS], "stop", None),
            ({"ignore_eos": True}, [5, EOS, 7], [5, EOS, 7], None, None),
            ({"stop_token_ids": (7, 8)}, [5, 7, 6], [5, 7], "stop", 7),
            ({"stop_token_ids": (EOS,), "ignore_eos": False}, [EOS, 1], [EOS], "stop", None),
            ({"stop_token_ids": (EOS,), "ignore_eos": True}, [EOS, 1], [EOS], "stop", EOS),
            ({"min_tokens": 2, "ignore_eos": False}, [EOS, EOS, 1], [EOS, EOS, 1], None, None),
            ({"min_tokens": 2, "ignore_eos": False}, [1, 2, EOS, 3], [1, 2, EOS], "stop", None),
            ({"max_tokens": 2}, [1, 2, 3], [1, 2], "length", None),
            ({"max_tokens": 2, "stop_token_ids": (2,)}, [1, 2, 3], [1, 2], "stop", 2),
            ({"max_tokens": 1000}, list(range(1, 10)), list(range(1, 7)), "length", None),
        ],
    )
    def test_when_and_with_what(
        self,
        sampling: dict,
        drawn: list[int],
        kept: list[int],
        reason: str | None,
        stop_token_id: int | None,
    ) -> None:
        """Tokens drawn at once, as drafts were right, and one by one."""
        for chunks in ([drawn], [[token] for token in drawn]):
            drafter = FixedDrafts(chunks[0][:-1])
            scheduler = make_scheduler(max_model_len=7, drafter=drafter, num_speculative_tokens=9)
            scheduler.add(make_request("a", 1, **{"max_tokens": 20, "logprobs": 0} | sampling))
            answer = Answer()
            for chunk in chunks:
                if scheduler.has_work():
                    for event in commit(scheduler, scheduler.schedule(), chunk):
                        assert len(event.logprobs) == len(event.token_ids)
                        answer.add(event)
                    scheduler.check_invariants()
            assert (answer.token_ids, answer.finish_reason) == (kept, reason)
            assert answer.stop_token_id == stop_token_id
            assert scheduler.has_work() == (reason is None)

    def test_no_tokens_wanted(self) -> None:
        bench = Bench(max_num_batched_tokens=4)
        bench.add("a", 6, max_tokens=0)
        assert bench.steps(2) == ["a 0:4", "a 4:6"]
        assert bench.answers["a", 0] == Answer(finish_reason=FinishReason.LENGTH)
        assert bench.answers["a", 0].queue_times_s == [1.0]

    def test_a_broken_row_ends_its_sequence_only(self) -> None:
        scheduler = make_scheduler()
        for name in "ab":
            scheduler.add(make_request(name, 3, n=2))
        decision = scheduler.schedule()
        outputs = [SequenceOutput(0, error="NaN"), SequenceOutput(2, token_ids=[5])]
        first, second = scheduler.commit(decision, StepOutput(outputs))
        scheduler.check_invariants()
        assert (first.request_id, first.finish_reason) == ("a", "error")
        assert first.failure.code == "request_failed"
        assert first.failure.message.startswith("NaN; ")
        assert (second.request_id, second.finish_reason) == ("b", None)
        decision = scheduler.schedule()
        assert [s.seq_id for s in decision.scheduled] == [2, 1, 3], "the others go on"
        assert decision.finished == [0]

    def test_the_executor_hears_of_the_end_once(self) -> None:
        bench = Bench()
        bench.run("a", 3, max_tokens=1)
        scheduler = bench.scheduler
        assert scheduler.schedule().finished == [], "kept until something runs"
        scheduler.add(make_request("b", 3))
        assert scheduler.schedule().finished == [0]
        assert scheduler.schedule().finished == []

    def test_a_foreign_output_is_refused(self) -> None:
        scheduler = make_scheduler()
        scheduler.add(make_request("a", 3))
        decision = scheduler.schedule()
        for outputs in ([], [SequenceOutput(1)], [SequenceOutput(0), SequenceOutput(0)]):
            with pytest.raises(InvariantViolation):
                scheduler.commit(decision, StepOutput(outputs))

    def test_an_error_behind_accepted_tokens_comes_after_them(self) -> None:
        scheduler = make_scheduler(drafter=FixedDrafts([5, 6]))
        scheduler.add(make_request("a", 1))
        decision = scheduler.schedule()
        output = SequenceOutput(0, token_ids=[5, 6], error="NaN")
        tokens, error = scheduler.commit(decision, StepOutput([output]))
        assert (tokens.token_ids, tokens.finish_reason) == ([5, 6], None)
        assert (error.token_ids, error.finish_reason) == ([], "error")
        assert not scheduler.has_work()

    def test_a_missing_token_ends_its_sequence(self) -> None:
        scheduler = make_scheduler()
        scheduler.add(make_request("a", 3))
        [event] = scheduler.commit(scheduler.schedule(), StepOutput([SequenceOutput(0)]))
        assert (event.finish_reason, event.failure.code) == ("error", "request_failed")
        assert scheduler.is_doubtful

    def test_doubtful_blocks_are_not_kept(self) -> None:
        """A commit that failed half-way may have lost blocks."""
        scheduler = make_scheduler()
        scheduler.add(make_request("a", 3))
        scheduler.add(make_request("b", 3))
        decision = scheduler.schedule()
        scheduler._pool.allocate()  # lost
        scheduler.is_doubtful = True
        scheduler.recover(RuntimeError(), decision)
        scheduler.check_invariants()
        assert scheduler.has_work()


class TestWaiting:
    @pytest.mark.parametrize("enable_prefix_caching", [False, True])
    def test_what_waits_gets_the_same_text_later(self, enable_prefix_caching: bool) -> None:
        """However often nothing can be drawn for it, and whoever runs beside it."""
        knobs = {"num_kv_blocks": 12, "block_size": 4, "max_num_batched_tokens": 10}
        knobs["enable_prefix_caching"] = enable_prefix_caching
        config = make_config(**knobs, max_model_len=40)
        requests = [make_request(f"r{i}", random.randrange(1, 15), 9, seed=i) for i in range(6)]
        expected = run_all(make_scheduler(config), PagedExecutor(config), requests)

        scheduler = make_scheduler(config, drafter=FixedDrafts([5, 6, 7]))
        executor, answers = PagedExecutor(config), {}
        for request in requests:
            scheduler.add(request)
        while scheduler.has_work():
            decision = scheduler.schedule()
            output = executor.execute(decision)
            for result in output.outputs:
                if result.token_ids and random.random() < 0.4:
                    del executor.sequences[result.seq_id].history[-len(result.token_ids) :]
                    result.token_ids, result.logprobs, result.is_waiting = [], None, True
            for event in scheduler.commit(decision, output):
                answers.setdefault((event.request_id, event.index), Answer()).add(event)
            scheduler.check_invariants()
        assert {key: one.token_ids for key, one in answers.items()} == {
            key: one.token_ids for key, one in expected.items()
        }


def drafting(drafts: list[int], prompt: object = 4, **knobs: object) -> Scheduler:
    """A scheduler whose only text `a` has one token more than its prompt, which is 1."""
    scheduler = make_scheduler(drafter=FixedDrafts(drafts), **knobs)
    scheduler.add(make_request("a", prompt, 40))
    commit(scheduler, scheduler.schedule(), [1])
    return scheduler


class TestDrafts:
    def test_they_run_behind_the_last_known_token(self) -> None:
        drafter = FixedDrafts([5, 6, 7])
        scheduler = make_scheduler(drafter=drafter)
        scheduler.add(make_request("a", 4, 20))
        commit(scheduler, scheduler.schedule(), [1])
        decision = scheduler.schedule()
        [row] = decision.scheduled
        assert (row.token_ids, row.start, row.num_draws) == ([1, 5, 6, 7], 4, 4)
        assert (row.drafts, row.num_output_tokens) == ([5, 6, 7], 1)
        assert decision.blocks_next
        commit(scheduler, decision, [5, 9])
        assert drafter.learned == [(3, 1)]
        [row] = scheduler.schedule().scheduled
        assert (row.token_ids, row.start) == ([9, 5, 6, 7], 6)
        scheduler.abort("a")
        assert drafter.learned == [(3, 1), 0], "it may forget the sequence"

    def test_blocks_of_what_was_rejected_are_given_back(self) -> None:
        scheduler = drafting([5] * 12, prompt=3, block_size=4, num_speculative_tokens=12)
        decision = scheduler.schedule()
        assert scheduler.stats().kv_blocks_used == 4, "3 + 1 + 12 tokens"
        commit(scheduler, decision, [2])
        scheduler.check_invariants()
        assert scheduler.stats().kv_blocks_used == 1
        decision = scheduler.schedule()
        commit(scheduler, decision, [5] * 5)
        assert scheduler.stats().kv_blocks_used == 3, "9 computed"
        scheduler.check_invariants()

    def test_nobody_is_preempted_for_them(self) -> None:
        scheduler = drafting([5] * 9, block_size=4, num_kv_blocks=2, max_model_len=8)
        [row] = scheduler.schedule().scheduled
        assert row.token_ids == [1, 5, 5], "two more and the text is full"

    @pytest.mark.parametrize("prompt", [9, 40])
    def test_there_are_none_beside_prompts(self, prompt: int) -> None:
        scheduler = drafting([5, 6], max_num_batched_tokens=16)
        scheduler.add(make_request("b", prompt))
        assert [row.drafts for row in scheduler.schedule().scheduled] == [[], []]

    def test_a_scored_prompt_without_output_gets_none(self) -> None:
        scheduler = make_scheduler(drafter=FixedDrafts([5, 6]))
        scheduler.add(make_request("a", 1, 0, prompt_logprobs=0))
        [row] = scheduler.schedule().scheduled
        assert (row.num_draws, row.drafts) == (0, [])


class TestPromptScores:
    def test_they_are_made_again_after_preemption_and_never_read_from_the_cache(self) -> None:
        bench = Bench(max_num_batched_tokens=8, num_kv_blocks=8, max_model_len=32)
        bench.run("b", 20, max_tokens=1)
        bench.add("a", 2, max_tokens=20)
        bench.step()
        prompt = make_request("b", 20).prompt_token_ids
        bench.add("c", prompt, max_tokens=2, prompt_logprobs=0)
        assert bench.step() == "a 2:3*, c 0:7"
        victim = bench.scheduler._sequences.running[-1]
        bench.scheduler._sequences.preempt(victim)
        assert bench.step() == "a 3:4*, c 0:7"
        bench.finish()
        scores = bench.answers["c", 0].prompt_logprobs
        assert [s.token_id for s in scores[1:]] == prompt[1:]
        assert bench.cached("c") == 0
        assert bench.stats.prefix_cache_queries == 22, "a and b"

    def test_once_sent_they_are_not_made_again(self) -> None:
        bench = Bench()
        bench.add("a", 9, max_tokens=5, prompt_logprobs=0)
        bench.steps(2)
        bench.scheduler._sequences.preempt(bench.scheduler._sequences.running[0])
        assert bench.step() == "a 8:11*", "from the cache"

    def test_a_prompt_of_one_token(self) -> None:
        bench = Bench()
        bench.run("a", 1, max_tokens=0, prompt_logprobs=0)
        assert bench.answers["a", 0].prompt_logprobs == [None]


class TestAbort:
    def test_unknown_and_repeated(self) -> None:
        bench = Bench()
        bench.scheduler.abort("nobody")
        bench.add("a", 3)
        for _ in range(2):
            bench.scheduler.abort("a")
        assert not bench.scheduler.has_work()
        bench.scheduler.check_invariants()
        assert bench.scheduler.schedule().finished == [], "the executor never saw it"

    def test_everywhere_at_once(self) -> None:
        """Held back, waiting, preempted and running; the blocks are free at once."""
        bench = Bench(max_num_batched_tokens=8, num_kv_blocks=8, max_model_len=32)
        bench.add("runs", 3, n=2)
        bench.add("partly", 12, n=3)
        bench.add("waits", 5, n=2)
        bench.step()
        bench.scheduler._sequences.preempt(bench.scheduler._sequences.running[-1])
        assert bench.stats.num_waiting == 6
        for name in ("waits", "partly", "runs"):
            bench.scheduler.abort(name)
            bench.scheduler.check_invariants()
        assert not bench.scheduler.has_work()
        assert (bench.stats.kv_blocks_used, bench.stats.num_waiting) == (0, 0)

    @pytest.mark.parametrize("index", [0, 1, 2])
    def test_of_one_completion(self, index: int) -> None:
        """Its blocks are free at once; the others go on, also those that waited for it."""
        bench = Bench(max_num_batched_tokens=8)
        for name, num_steps in (("begun", 3), ("not begun", 0)):
            bench.add(name, 20, max_tokens=9, n=3)
            bench.steps(num_steps)
            num_blocks = bench.stats.kv_blocks_used
            bench.scheduler.abort(name, index)
            bench.scheduler.abort(name, index)
            bench.scheduler.abort(name, 3)
            bench.scheduler.check_invariants()
            assert bench.stats.num_running + bench.stats.num_waiting == 2 * (1 + (not num_steps))
            assert num_steps == 0 or bench.stats.kv_blocks_used <= num_blocks
        bench.finish()
        reasons = {key: answer.finish_reason for key, answer in bench.answers.items()}
        left = [i for i in range(3) if i != index]
        assert {key for key, reason in reasons.items() if reason == "length"} == {
            (name, i) for name in ("begun", "not begun") for i in left
        }
        assert ("not begun", index) not in reasons

    def test_its_name_can_be_used_again(self) -> None:
        bench = Bench()
        bench.add("a", 6)
        decision = bench.scheduler.schedule()
        output = bench.executor.execute(decision)
        bench.scheduler.abort("a")
        bench.add("a", 5, max_tokens=1)
        assert bench.scheduler.commit(decision, output) == []
        assert bench.step() == "a 0:5*"


class TestAdmission:
    @pytest.mark.parametrize(
        ("prompt", "sampling", "error", "message"),
        [
            ([50], {}, InvalidParameter, "token id 50"),
            ([1], {"beams": BeamParams(width=9)}, InvalidParameter, "9 sequences .* most 8"),
            ([1] * 16, {}, ContextLengthExceeded, "is 16 tokens.* 16 tokens .*max_model_len"),
            ([1] * 17, {"max_tokens": 0}, ContextLengthExceeded, "17 tokens"),
            ([1] * 13, {}, OutOfBlocks, "13 tokens; the KV cache holds 12"),
        ],
    )
    def test_what_can_never_run_is_refused(
        self, prompt: list[int], sampling: dict, error: type[EngineError], message: str
    ) -> None:
        scheduler = make_scheduler(max_model_len=16, num_kv_blocks=3)
        with pytest.raises(error, match=message):
            scheduler.add(make_request("a", prompt, **sampling))
        assert not scheduler.has_work()
        scheduler.check_invariants()

    def test_the_context_may_be_filled_to_the_last_token(self) -> None:
        bench = Bench(max_model_len=16)
        bench.add("a", 15, max_tokens=100)
        bench.run("b", 16, max_tokens=0)
        assert len(bench.answers["a", 0].token_ids) == 1
        assert bench.answers["b", 0].finish_reason == "length"

    def test_the_same_id_twice(self) -> None:
        bench = Bench()
        bench.add("a", 3)
        with pytest.raises(InvalidParameter, match="id"):
            bench.add("a", 3)

    def test_queue_limit(self) -> None:
        """Two find a place, three may wait."""
        bench = Bench(max_num_seqs=2, max_num_queued=3)
        for name in "abcde":
            bench.add(name, 3, max_tokens=2, n=2)
        with pytest.raises(QueueFull, match="3 requests are already waiting"):
            bench.add("f", 3)
        bench.step()
        with pytest.raises(QueueFull):
            bench.add("f", 3)
        bench.scheduler.abort("c")
        bench.add("f", 3, max_tokens=1)
        with pytest.raises(QueueFull):
            bench.add("g", 3)
        assert ("f", 0) in bench.finish()

    def test_there_are_no_more_places_than_tokens_in_a_step(self) -> None:
        scheduler = make_scheduler(max_num_seqs=8, max_num_batched_tokens=2, max_num_queued=1)
        for name in "abc":
            scheduler.add(make_request(name, 3))
        with pytest.raises(QueueFull):
            scheduler.add(make_request("d", 3))

    def test_a_new_sequence_tells_the_executor_all_it_needs(self) -> None:
        scheduler = make_scheduler()
        request = make_request("a", 5, n=2, seed=-3, stop_token_ids=(9, 4), ignore_eos=False)
        scheduler.add(request)
        scheduler.add(make_request("b", 5, stop_token_ids=(9,), seed=0, adapter="x"))
        decision = scheduler.schedule()
        first, other = decision.new
        assert (first.seed, first.index, first.suppressed_token_ids) == (-3, 0, (EOS, 9, 4))
        assert first.prompt_token_ids == request.prompt_token_ids
        assert first.sampling is request.sampling
        assert (other.suppressed_token_ids, other.adapter) == ((9,), "x")
        commit(scheduler, decision, [1])
        [second] = scheduler.schedule().new
        assert (second.seq_id, second.seed, second.index) == (1, -3, 1)

    def test_seeds_are_drawn_from_the_configured_one(self) -> None:
        def seeds(config_seed: int | None) -> list[int]:
            scheduler = make_scheduler(seed=config_seed)
            for name in "abc":
                scheduler.add(make_request(name, 2))
            return [new.seed for new in scheduler.schedule().new]

        assert seeds(1) == seeds(1) != seeds(2)
        assert seeds(None) != seeds(None)
        assert len(set(seeds(1))) == 3
        assert all(0 <= seed < 1 << 63 for seed in seeds(None))

    def test_queue_time_is_told_once_per_request(self) -> None:
        bench = Bench()
        bench.run("a", 3, n=2)
        assert bench.answers["a", 0].queue_times_s == [1.0]
        assert bench.answers["a", 1].queue_times_s == []
        # The clock was set back.
        bench.scheduler.add(replace(make_request("b", 3), arrival_time_s=1e9))
        bench.finish()
        assert bench.answers["b", 0].queue_times_s == [0.0]


def test_stats_count_slots_and_blocks() -> None:
    bench = Bench()
    bench.add("a", 6, max_tokens=3)
    bench.add("b", 8, max_tokens=3)
    bench.step()
    stats = bench.stats
    assert (stats.num_running, stats.num_waiting, stats.step_tokens) == (2, 0, 14)
    assert (stats.kv_blocks_total, stats.kv_blocks_used, stats.kv_block_size) == (64, 4, 4)
    assert stats.kv_slots_unused == 2, "two of a's second block"
    bench.step()
    assert bench.stats.kv_slots_unused == 1 + 3, "b began a block"
    assert bench.stats.num_steps == 2


def test_memory_is_reused_before_it_is_grown() -> None:
    """One request after the other stays within the blocks of the largest, cache aside."""
    bench = Bench(enable_prefix_caching=False)
    for i in range(20):
        bench.run(f"r{i}", 12, max_tokens=4)
    assert bench.scheduler._pool._num_touched == 4


def test_invariants_are_checked() -> None:
    """The check fails when what it guards is broken."""
    for corrupt in (
        lambda s: s._sequences.running.clear(),
        lambda s: s._sequences.running.reverse(),
        lambda s: s._sequences.running.append(s._sequences.running[0]),
        lambda s: setattr(s._sequences, "num_held_back", 5),
        lambda s: setattr(s._sequences, "num_new_requests", 5),
        lambda s: s._sequences._requests.clear(),
        lambda s: s._sequences.waiting.push(s._sequences.running[0]),
        lambda s: s._pool.release(0),
        lambda s: setattr(s, "_num_step_tokens", 10_000),
        lambda s: setattr(s, "_max_num_running", 1),
    ):
        scheduler = make_scheduler()
        for name in "ab":
            scheduler.add(make_request(name, 6))
        commit(scheduler, scheduler.schedule(), [1])
        scheduler.check_invariants()
        corrupt(scheduler)
        with pytest.raises(InvariantViolation):
            scheduler.check_invariants()
