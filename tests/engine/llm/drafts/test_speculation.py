"""Speculation changes when tokens come and no text: engines with and without it, bit for bit."""

import itertools
import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from engine.contract.generate import DrafterName
from engine.contract.request import FinishReason
from engine.llm.cost.step_budget import Price, StepBudget
from engine.llm.drafts.speculation import HIGHEST_PRICE, INDEXED_PER_STEP, Speculation
from engine.llm.engine import LLMEngine
from engine.llm.request import Sequence
from engine.llm.runner.model_runner import ModelRunner
from engine.llm.sampling import sampler as sampling
from tests.helpers.llm.logits import cramped
from tests.helpers.llm.paged_executor import make_config
from tests.helpers.llm.repetitive import (
    VOCAB,
    make_requests,
    outcome,
    repetitive,
    without_drafts,
)
from tests.helpers.llm.speculating import (
    RECURRENT,
    Oracle,
    check_drafts,
    draft_by,
    same_with_and_without,
)

pytestmark = pytest.mark.usefixtures("cheap_rows")
PRICE = StepBudget.price
DTYPES = ["float32", "bfloat16", "float16"]
ATTENDING = ["tiny_llama", "tiny_gemma3"]


def make_folder(request):
    make = request.getfixturevalue(request.param)
    return make(seed=5, head_dim=64, hidden_size=96, intermediate_size=136)


@pytest.fixture(scope="module", params=ATTENDING)
def folder(request):
    return make_folder(request)


@pytest.fixture(scope="module", params=[*ATTENDING, *RECURRENT])
def any_folder(request):
    if request.param in ATTENDING:
        return make_folder(request)
    return request.getfixturevalue(request.param)(seed=5, vocab_size=VOCAB)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_requests(engines, folder, rng, dtype):
    requests = make_requests(engines, rng)
    expected = without_drafts(engines, folder, requests, dtype=dtype)
    for drafter in (None, Oracle(expected, rng)):
        engine = engines.make(folder, dtype=dtype, num_speculative_tokens=7, prompt_lookup_min=1)
        if drafter is not None:
            draft_by(engine, drafter)
        assert outcome(engines.run(engine, requests)) == expected
    check_drafts(engine.stats())


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_guesses_from_the_text_itself(engines, folder, rng, temperature):
    bias = {rng.randrange(VOCAB): 7.0 for _ in range(4)}
    requests = make_requests(
        engines, rng, 3, (60, 90), temperature=temperature, ignore_eos=True, logit_bias=bias
    )
    result = same_with_and_without(engines, folder, requests, None)
    assert result.num_draft_tokens > 0


@pytest.mark.parametrize("overlap", ["off", "on"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_guesses_from_texts_that_have_ended(engines, folder, rng, temperature, overlap):
    """A text is its own last answer's: guessed at once, though its prompt repeats nothing."""
    prompt = rng.sample(range(VOCAB), 20)
    sampling = {"max_tokens": 30, "temperature": temperature, "seed": 5, "ignore_eos": True}
    [expected] = engines.run(
        engines.make(folder), [engines.request("x", prompt, **sampling)]
    ).values()
    engine = engines.make(
        folder, num_speculative_tokens=7, shared_lookup_tokens=1000, async_scheduling=overlap
    )
    accepted = []
    for name in "abc":
        [found] = engines.run(engine, [engines.request(name, prompt, **sampling)]).values()
        assert found.token_ids == expected.token_ids
        accepted.append(engine.stats().num_accepted_tokens)
    assert accepted[0] < accepted[1] < accepted[2]


def test_any_requests_beside_texts_that_have_ended(engines, folder, rng):
    requests = make_requests(engines, rng, 6)
    arrivals = [rng.randrange(60) for _ in requests]
    same_with_and_without(
        engines, folder, requests, None, arrivals=arrivals, shared_lookup_tokens=500
    )


@pytest.mark.each_value
@pytest.mark.parametrize(
    "knobs",
    [
        {"async_scheduling": "off", "record_steps": False},
        {"async_scheduling": "off", "record_steps": True},
        {"async_scheduling": "on", "record_steps": False},
        {"async_scheduling": "on", "record_steps": True},
        {"max_num_batched_tokens": 3, "max_num_seqs": 1},
        {"max_num_batched_tokens": 9, "max_num_seqs": 3},
        {"max_num_batched_tokens": 40, "max_num_seqs": 3},
        {"enable_prefix_caching": False},
    ],
    ids=str,
)
def test_any_steps(engines, any_folder, rng, knobs):
    requests = make_requests(engines, rng, 6, (30, 60))
    arrivals = [rng.randrange(40) for _ in requests]
    result = same_with_and_without(engines, any_folder, requests, rng, arrivals=arrivals, **knobs)
    check_drafts(result)


def test_prefix_hits(engines, folder, rng):
    requests = make_requests(engines, rng, shared=1.0, prompt_logprobs=None)
    arrivals = [4 * i for i in range(len(requests))]
    result = same_with_and_without(engines, folder, requests, rng, arrivals=arrivals)
    check_drafts(result)
    assert result.prefix_cache_hits > 0


def test_a_text_that_goes_on_from_one_that_was_drafted(engines, folder, rng):
    """Cached blocks hold keys and values of accepted tokens only."""
    engine = engines.make(folder, num_speculative_tokens=7, prompt_lookup_min=1)
    plain = engines.make(folder, num_speculative_tokens=0, enable_prefix_caching=False)
    text = repetitive(rng, 30)
    for turn in range(4):
        request = engines.request(str(turn), text, max_tokens=40, ignore_eos=True)
        [got] = engines.run(engine, [request]).values()
        [expected] = engines.run(plain, [request]).values()
        assert got.token_ids == expected.token_ids
        assert got.num_cached_tokens >= (len(text) - 5 - 16 if turn else 0)
        text = text + got.token_ids + repetitive(rng, 5)
    assert engine.stats().num_draft_tokens > 0


def test_preemption(engines, folder, rng):
    endless = {"ignore_eos": True, "stop_token_ids": ()}
    requests = make_requests(engines, rng, 4, (90, 120), n=1, **endless)
    knobs = {"enable_prefix_caching": False, **cramped(folder)}
    check_drafts(same_with_and_without(engines, folder, requests, rng, **knobs))


def test_aborts(engines, folder, rng):
    requests = make_requests(engines, rng, output_tokens=(20, 50))
    doomed = {r.request_id: rng.randrange(2, 20) for r in rng.sample(requests, 4)}
    check_drafts(same_with_and_without(engines, folder, requests, rng, aborts=doomed))


def test_drafts_save_steps(engines, folder):
    """A text that repeats itself takes far fewer steps."""
    engine = engines.make(folder, num_speculative_tokens=7)
    request = engines.request(
        "a", [5, 6, 7] * 4, max_tokens=100, ignore_eos=True, logit_bias={9: 100.0}
    )
    [completion] = engines.run(engine, [request]).values()
    assert completion.token_ids == [9] * 100
    assert engine.stats().num_steps < 30
    assert engine.stats().num_accepted_tokens > 70


def test_the_end_may_come_inside_an_accepted_run(engines, folder):
    engine = engines.make(folder, num_speculative_tokens=7)
    for max_tokens in range(1, 30):
        request = engines.request(
            str(max_tokens), [9] * 12, max_tokens=max_tokens, logit_bias={9: 100.0}, logprobs=0
        )
        [completion] = engines.run(engine, [request]).values()
        assert completion.token_ids == [9] * max_tokens
        assert completion.finish_reason is FinishReason.LENGTH
        assert len(completion.logprobs) == max_tokens


def test_a_wrong_acceptance_is_found_out(engines, folder, rng, monkeypatch):
    """The comparison can fail: tokens are taken although the draft before them was not drawn."""
    monkeypatch.setattr(sampling, "_without_void", lambda rows, sampled: list(sampled))
    requests = make_requests(engines, rng, 4, (40, 50), temperature=1.0, ignore_eos=True)
    with pytest.raises(AssertionError):
        same_with_and_without(engines, folder, requests, rng)


def test_what_a_rejected_draft_left_is_written_over(engines, folder, rng, monkeypatch):
    """The comparison can fail: a rejected draft's keys and values are kept for the text's."""
    monkeypatch.setattr(Sequence, "rewind", lambda self, num_tokens: None)
    step, num_steps = LLMEngine.step, itertools.count()

    def one_of_few(engine):
        assert next(num_steps) < 300, "no end in sight"
        return step(engine)

    monkeypatch.setattr(LLMEngine, "step", one_of_few)
    requests = make_requests(engines, rng, 4, (40, 50), temperature=1.0, ignore_eos=True)
    with pytest.raises(AssertionError):
        same_with_and_without(engines, folder, requests, rng, debug_invariants=False)


def test_tokens_come_as_often_as_without(engines, tiny_llama):
    """The third token of a text whose first two were drafted, over many seeds, against the same
    without drafts of other seeds: a chi-square of two samples."""
    folder = tiny_llama(seed=5, vocab_size=64)
    counts = []
    for num_drafts in (0, 7):
        engine = engines.make(folder, num_speculative_tokens=num_drafts, prompt_lookup_min=1)
        base = random.getrandbits(60)
        bias = {9: 6.0, 8: 5.0, 7: 5.5, 6: 4.0}
        requests = [
            engines.request(
                str(i), [9, 8, 7, 6] * 3, max_tokens=6, temperature=1.0, seed=base + i,
                logit_bias=bias, ignore_eos=True,
            )
            for i in range(300)
        ]  # fmt: skip
        done = {}
        for first in range(0, len(requests), 8):
            done |= engines.run(engine, requests[first : first + 8])
        counts.append(Counter(tuple(c.token_ids[4:6]) for c in done.values()))
        assert (engine.stats().num_accepted_tokens > 100) == bool(num_drafts)
    keys = sorted(counts[0].keys() | counts[1].keys(), key=lambda k: -(counts[0][k] + counts[1][k]))
    frequent = [k for k in keys if counts[0][k] + counts[1][k] >= 20]
    table = [[one[k] for k in frequent] for one in counts]
    rest = [300 - sum(row) for row in table]
    if sum(rest) >= 20:
        table = [[*row, other] for row, other in zip(table, rest, strict=True)]
    assert stats.chi2_contingency(np.array(table)).pvalue > 1e-9


class Text:
    """The part of a running sequence that speculation looks at."""

    def __init__(self, seq_id, token_ids, *, num_pending=0, num_prompt_tokens=None, root=b""):
        self.seq_id = seq_id
        self.token_ids = token_ids
        self.num_pending = num_pending
        self.num_prompt_tokens = num_prompt_tokens or len(token_ids)
        self.num_output_tokens = len(token_ids) - self.num_prompt_tokens
        self.owner = SimpleNamespace(chain_root=root)
        self.num_draftable = 100
        self.last_num_tokens = 1000


class Copy(Text):
    """One that says the same five tokens again and again, as long as it is told to."""

    def __init__(self, seq_id: int = 0) -> None:
        super().__init__(seq_id, [1, 2, 3, 4, 5] * 10)

    def go_on(self, num_tokens: int) -> None:
        self.token_ids += [self.token_ids[-5 + i % 5] for i in range(num_tokens)]

    def digress(self) -> None:
        self.token_ids.append(99)


def make_speculation(**changes) -> Speculation:
    facts = {"num_speculative_tokens": 8, "prompt_lookup_min": 2, "max_num_batched_tokens": 64}
    return Speculation(make_config(**(facts | changes)))


def price_of(row: float) -> Price:
    return Price(row, step_s=1.0, num_tokens=1)


def lengths(speculation, *texts, num_rows=50, price=0.05):
    return [len(drafts) for _, drafts in speculation.draft(texts, num_rows, price_of(price))]


def test_drafts_grow_while_they_are_right_and_shrink_when_not():
    speculation, text = make_speculation(), Copy()
    found = []
    for _ in range(4):
        [num_drafts] = lengths(speculation, text)
        found.append(num_drafts)
        text.go_on(num_drafts + 1)
    assert 0 < found[0] < 8 and found == sorted(found) and found[-1] == 8
    assert lengths(speculation, text) == [8]
    text.digress()
    lengths(speculation, text)
    assert speculation._records[0].num_right == 0
    text.token_ids += text.token_ids[:7]
    [num_drafts] = lengths(speculation, text)
    assert num_drafts < 8


def test_a_draft_is_what_followed_before():
    speculation = make_speculation()
    [(_, drafts)] = speculation.draft([Copy()], 50, price_of(0.0))
    assert drafts == [1, 2, 3, 4, 5, 1, 2, 3]
    text = Text(0, [1, 2, 3, 4, 5] * 2, num_pending=1)
    [(_, drafts)] = make_speculation().draft([text], 50, price_of(0.0))
    assert drafts == [2, 3, 4, 5, 1, 2, 3, 4], "the pending token is expected to be 1"


def taught_by_texts_that_do_not_copy(speculation, count=300, price=0.1) -> int:
    """Texts of one guess, which is wrong, one after the other; returns how many rows it cost."""
    num_rows = 0
    for i in range(count):
        text = Copy(i)
        num_rows += sum(lengths(speculation, text, price=price))
        text.digress()
        speculation.forget(text)
    return num_rows


def test_texts_that_do_not_copy_teach_it_for_all_and_no_row_is_spent_to_try_again():
    speculation = make_speculation()
    assert taught_by_texts_that_do_not_copy(speculation) > 0
    assert taught_by_texts_that_do_not_copy(speculation, 2000) == 0


@pytest.mark.parametrize("price", [0.02, 0.1, 0.2])
def test_a_text_that_copies_is_noticed_within_a_few_tokens_all_the_same(price):
    speculation = make_speculation()
    taught_by_texts_that_do_not_copy(speculation)
    text, num_steps = Copy(1000), 0
    while not lengths(speculation, text, price=price):
        text.go_on(1)
        num_steps += 1
    assert num_steps <= 4


def test_answers_are_guessed_for_others_who_may_know_them_and_prompts_are_not():
    speculation = make_speculation(shared_lookup_tokens=1000)
    prompt, answer = [*range(10, 20)], [*range(20, 40)]
    taught_by_texts_that_do_not_copy(speculation)
    speculation.forget(Text(0, prompt + answer, num_prompt_tokens=len(prompt)))

    def drafts_of(text):
        return [drafts for _, drafts in speculation.draft([text], 50, price_of(0.1))]

    [drafts] = drafts_of(Text(1, prompt[-2:]))
    assert drafts == answer[: len(drafts)], "wrong guesses in texts themselves do not count"
    assert drafts_of(Text(2, prompt[-2:], root=b"others")) == []
    assert drafts_of(Text(3, prompt[:4])) == []


def test_what_was_not_looked_at_for_a_while_is_no_copy_any_more():
    speculation, text = make_speculation(), Copy()
    lengths(speculation, text)
    text.go_on(40)
    assert not lengths(speculation, text, price=HIGHEST_PRICE * 1.01)
    lengths(speculation, text)
    assert speculation._records[0].num_right == 0
    text.go_on(3)
    lengths(speculation, text)
    assert speculation._records[0].num_right == 3


def test_rows_that_cost_too_much_end_it_and_nothing_is_looked_up():
    speculation = make_speculation()
    assert not lengths(speculation, Copy(), price=HIGHEST_PRICE * 1.01)
    assert not speculation._records
    lengths(speculation, Copy(), price=HIGHEST_PRICE)
    assert speculation._records


def test_drafts_that_have_taken_longer_than_their_rows_are_shorter():
    dear = Price(0.05, step_s=1.0, num_tokens=1, surcharge=8.0)
    [(_, drafts)] = make_speculation().draft([Copy()], 50, price_of(0.05))
    assert not list(make_speculation().draft([Copy()], 50, dear))
    assert len(drafts) > 0


@pytest.mark.parametrize("num_rows", [1, 5, 50])
def test_a_step_has_no_more_rows_than_it_may(num_rows):
    speculation = make_speculation()
    total = sum(lengths(speculation, *(Copy(i) for i in range(10)), num_rows=num_rows))
    assert total == min(num_rows, 10 * lengths(make_speculation(), Copy())[0])


def test_a_long_text_is_indexed_over_several_steps():
    speculation = make_speculation()
    text = Text(0, [1, 2, 3, 4, 5] * (2 * INDEXED_PER_STEP // 5))
    found = [lengths(speculation, text) for _ in range(3)]
    assert found[0] == [] and found[1] == found[2] and found[1][0] > 0


def test_it_forgets_who_has_ended():
    speculation = make_speculation()
    texts = [Copy(i) for i in range(3)]
    lengths(speculation, *texts)
    for text in texts:
        speculation.forget(text)
        speculation.forget(text)
    assert not speculation._records


def test_an_engine_remembers_nobody(engines, folder, rng):
    engine = engines.make(folder, num_speculative_tokens=4)
    requests = make_requests(engines, rng)
    engines.run(engine, requests, aborts={"0": 3, "1": 5})
    assert not engine._scheduler._drafting._drafters[DrafterName.LOOKUP]._records


def test_busy_engines_draft_nothing(engines, folder, monkeypatch):
    """A row takes a fifth of the time of the step itself: a batch of four has no use for drafts."""
    monkeypatch.setattr(StepBudget, "price", PRICE)
    now = [0.0]
    engine = engines.make(folder, num_speculative_tokens=7)
    engine._clock = lambda: now[0]
    launch = ModelRunner.launch

    def timed(runner, decision):
        now[0] += 0.01 * (5 + decision.num_tokens)
        return launch(runner, decision)

    monkeypatch.setattr(ModelRunner, "launch", timed)
    common = {"max_tokens": 60, "ignore_eos": True, "logit_bias": {9: 100.0}}
    alone = [engines.request("a", [9] * 12, **common)]
    engines.run(engine, alone)
    assert engine.stats().num_accepted_tokens > 0
    four = [engines.request(str(i), [9] * 12, **common) for i in range(4)]
    engines.run(engine, four)  # how long such steps take is learned
    before = engine.stats().num_drafts
    engines.run(engine, four)
    assert engine.stats().num_drafts == before


def test_a_draft_that_the_model_cannot_compute_harms_nobody(engines, folder, rng, monkeypatch):
    """A step with drafts fails, and is tried without them."""
    requests = make_requests(engines, rng, 5, (20, 40))
    expected = without_drafts(engines, folder, requests)
    engine = engines.make(folder, num_speculative_tokens=7)
    draft_by(engine, Oracle(expected, rng))
    launch, num_failed = ModelRunner.launch, 0

    def fragile(runner, decision):
        nonlocal num_failed
        if sum(len(row.drafts) for row in decision.scheduled) > 5:
            num_failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return launch(runner, decision)

    monkeypatch.setattr(ModelRunner, "launch", fragile)
    assert outcome(engines.run(engine, requests)) == expected
    assert num_failed > 0


def test_a_rejected_row_may_fail(engines, folder, rng, monkeypatch):
    """What a wrong draft makes of the logits is nobody's error."""
    unlikely = {"logit_bias": {399: -100.0}}
    requests = make_requests(engines, rng, 5, (30, 40), ignore_eos=True, **unlikely)
    expected = without_drafts(engines, folder, requests)
    logits_of, num_broken = ModelRunner._logits_to_sample, 0

    def broken(runner, rows, hidden):
        nonlocal num_broken
        logits = logits_of(runner, rows, hidden).clone()
        for place, draw in enumerate(rows.draws):
            if draw.draft == 399:
                logits[place] = torch.nan
                num_broken += 1
        return logits

    def wrong(speculation, decodes, num_rows, price):
        for sequence in decodes[:num_rows]:
            if sequence.num_draftable:
                yield sequence, [399]

    monkeypatch.setattr(Speculation, "draft", wrong)
    monkeypatch.setattr(Speculation, "learn", lambda *args: None)
    monkeypatch.setattr(ModelRunner, "_logits_to_sample", broken)
    engine = engines.make(folder, num_speculative_tokens=7)
    assert outcome(engines.run(engine, requests)) == expected
    assert num_broken > 20
