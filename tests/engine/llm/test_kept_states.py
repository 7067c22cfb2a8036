"""Which states a step makes and which are kept, and how texts stream meanwhile."""

import random
from collections.abc import Iterable, Iterator

import pytest

from engine.contract.picture_facts import PictureFacts
from engine.contract.prompt_states import StatePart
from engine.errors import ModelLoadError
from engine.llm.cost.step_budget import Price
from engine.llm.kept_states import MOST_ENCODED, KeptStates
from engine.llm.request import Sequence
from tests.helpers.llm.paged_executor import (
    PLACEHOLDER,
    Answers,
    Guesser,
    PagedExecutor,
    make_config,
    make_request,
    make_scheduler,
    picture_facts,
    run_step,
)


def part_of(content: int, start: int = 0, rows: int = 4) -> StatePart:
    return StatePart(start=start, length=rows, content=bytes([content, 0, 0]))


def test_the_longest_unused_states_are_dropped_first() -> None:
    a, b, c, d = (part_of(i) for i in range(4))
    kept = KeptStates(3, picture_facts(4, looks_both_ways=False))
    assert kept.settle([a, b]) == ([], [a, b])
    assert kept.settle([c]) == ([], [c])
    assert kept.settle([a]) == ([], [])
    assert kept.settle([d]) == ([b.digest], [d])
    assert kept.settle([b, a]) == ([c.digest], [b])


def test_small_pictures_leave_room_for_more() -> None:
    pictures = picture_facts(1, looks_both_ways=False, pixel_bounds=(1, 8))
    small = [part_of(i, rows=2) for i in range(4)]
    large, too_large = part_of(4, rows=8), part_of(5, rows=9)
    kept = KeptStates(1, pictures)
    assert kept.settle(small) == ([], small)
    assert kept.settle([large]) == ([part.digest for part in small], [large])
    assert kept.settle([too_large]) == ([large.digest], [too_large])


def test_after_a_failed_step_all_states_are_dropped_and_made_again() -> None:
    a, b = part_of(0), part_of(1)
    kept = KeptStates(3, picture_facts(4, looks_both_ways=False))
    kept.settle([a, b])
    kept.start_over()
    assert kept.settle([b]) == ([a.digest, b.digest], [b])
    assert kept.settle([b]) == ([], [])


class Seeing:
    """A scheduler that sees pictures, its executor, and a text that streams."""

    def __init__(self, pictures: PictureFacts, *, most_kept: int = 3, **knobs: object) -> None:
        self.config = make_config(max_num_batched_tokens=64, **knobs)
        states = KeptStates(most_kept, pictures)
        self.scheduler = make_scheduler(self.config, states=states)
        self.executor = PagedExecutor(
            self.config, most_kept=most_kept, looks_both_ways=pictures.looks_both_ways
        )
        self.rows = pictures.rows_per_crop
        self.answers: Answers = {}
        self.num_tokens: list[int] = []
        """The number of tokens of each step."""

    def add(self, name: str, num_pictures: int, priority: int = 0) -> None:
        prompt, states = [1], []
        for i in range(num_pictures):
            states.append(part_of(random.randrange(1 << 8), len(prompt), self.rows))
            prompt += [PLACEHOLDER] * self.rows + [2 + i]
        seed = random.getrandbits(62)
        request = make_request(name, prompt, 200, priority=priority, seed=seed, states=states)
        self.executor.parts_by_seed[seed] = tuple(states)
        self.scheduler.add(request)

    def step(self, per_part_s: float = 0.0) -> int:
        """Run a step of 0.1 s per token, and return how many parts it encoded."""
        decision = run_step(self.scheduler, self.executor, self.answers)
        num_encoded = len(decision.encoded)
        self.num_tokens.append(decision.num_tokens)
        seconds = 0.1 * decision.num_tokens + per_part_s * num_encoded
        self.scheduler.note_time(decision, seconds)
        return num_encoded

    def has(self, name: str) -> bool:
        """Whether a request has its first token."""
        return bool(self.answers.get((name, 0)) and self.answers[name, 0].token_ids)


def test_without_streams_a_step_encodes_a_few_pictures() -> None:
    seeing = Seeing(picture_facts(3, looks_both_ways=False), most_kept=20)
    seeing.add("pictures", 10)
    found = []
    while not seeing.has("pictures"):
        found.append(seeing.step())
    # Equal pictures are encoded once.
    assert max(found) <= MOST_ENCODED
    assert len(found) <= 10 // MOST_ENCODED + 2


def test_texts_stream_for_half_of_the_time_while_pictures_are_encoded() -> None:
    seeing = Seeing(picture_facts(3, looks_both_ways=False))
    seeing.add("stream", 0)
    seeing.step()
    seeing.add("pictures", 4)
    since, gaps = 100, []
    while not seeing.has("pictures"):
        before = len(seeing.answers["stream", 0].token_ids)
        num_encoded = seeing.step(per_part_s=5.0)
        assert len(seeing.answers["stream", 0].token_ids) == before + 1
        assert num_encoded <= 1
        if num_encoded:
            gaps.append(since)
        since = 0 if num_encoded else since + 1
    # A step that encodes takes more than 5 s. One that does not has a row of the stream and at most
    # one between two pictures.
    assert gaps
    assert all(gap >= 25 for gap in gaps)


def test_a_picture_that_displaces_the_streams_need_not_wait_for_them() -> None:
    seeing = Seeing(
        picture_facts(20, looks_both_ways=False),
        num_kv_blocks=8,
        max_model_len=32,
        scheduling_policy="priority",
    )
    seeing.add("stream", 0, priority=1)
    for _ in range(20):
        seeing.step()
    seeing.scheduler._states.note_time(1, 1000.0)
    seeing.add("picture", 1)
    assert seeing.step() == 1
    assert seeing.scheduler.stats().num_preemptions == 1


@pytest.mark.parametrize("looks_both_ways", [False, True])
def test_a_picture_is_computed_beside_streams_that_leave_it_little_room(
    looks_both_ways: bool,
) -> None:
    """With so short a target, prompts get 16 tokens a step."""
    seeing = Seeing(picture_facts(40, looks_both_ways=looks_both_ways), max_step_ms=0.001)
    seeing.add("stream", 0)
    for _ in range(20):
        seeing.step()
    seeing.add("pictures", 3)
    seeing.num_tokens.clear()
    while not seeing.has("pictures"):
        seeing.step()
    most = max(seeing.num_tokens)
    assert most > 40 if looks_both_ways else most <= 1 + 16


def test_a_picture_must_fit_into_a_step_beside_a_text() -> None:
    states = KeptStates(1, picture_facts(9, looks_both_ways=True))
    with pytest.raises(ModelLoadError, match="a picture takes 9 rows of one step"):
        make_scheduler(states=states, max_num_batched_tokens=8)
    scheduler = make_scheduler(states=states, max_num_batched_tokens=12, max_num_seqs=8)
    assert scheduler._max_num_running == 4


class PlaceholderGuesser(Guesser):
    """A drafter that expects a placeholder after another token."""

    def draft(
        self, decodes: Iterable[Sequence], num_rows: int, price: Price
    ) -> Iterator[tuple[Sequence, list[int]]]:
        yield from ((one, [7, PLACEHOLDER, 7]) for one in decodes if one.num_draftable >= 3)


def test_drafts_end_before_a_placeholder() -> None:
    pictures = picture_facts(3, looks_both_ways=False)
    drafter = PlaceholderGuesser(random.Random(), is_right=0.0)
    scheduler = make_scheduler(drafter=drafter, states=KeptStates(1, pictures))
    executor, answers = PagedExecutor(make_config()), {}
    scheduler.add(make_request("text", [1, 2, 3], 20))
    drafts = []
    while scheduler.has_work():
        decision = run_step(scheduler, executor, answers)
        drafts += [share.drafts for share in decision.scheduled if share.drafts]
    assert drafts
    assert all(one == [7] for one in drafts)
    assert drafter.num_drafts == len(drafts)
