"""A draft model changes when tokens come and no text, whatever it guesses, and holds nothing of
texts that have ended."""

import itertools
import json
import random
import shutil
from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.contract.generate import DrafterName
from engine.contract.sampling_params import SamplingParams
from engine.errors import InvalidParameter, ModelLoadError
from engine.llm.cost.step_budget import Price, StepBudget
from engine.llm.decision import NewSequence, SampleRow, ScheduledSequence, SequenceOutput
from engine.llm.drafts.draft_cache import DraftCache
from engine.llm.drafts.draft_model import FAILURE_PAUSE, DraftModel
from engine.llm.drafts.drafting import Drafting
from engine.llm.drafts.price_trials import TRIAL_STEPS
from engine.llm.runner.model_runner import ModelRunner
from engine.llm.sampling.sampler import Sampler
from kernels.sample_tokens import reference
from tests.helpers.llm.logits import cramped
from tests.helpers.llm.paged_executor import (
    VOCAB_SIZE,
    PagedExecutor,
    make_config,
    make_request,
    make_scheduler,
)
from tests.helpers.llm.repetitive import check_outcome, make_requests, outcome, without_drafts
from tests.helpers.llm.sessions import (
    AccountedExecutor,
    OverlappedSession,
    random_windows,
    run_sessions,
)

pytestmark = pytest.mark.usefixtures("cheap_rows")
MODEL = DrafterName.MODEL
NO_LOOKUP = {"prompt_lookup_min": 64, "prompt_lookup_max": 64}


@pytest.fixture(scope="module", params=["tiny_llama", "tiny_gemma3"])
def folder(request):
    make = request.getfixturevalue(request.param)
    return make(seed=5, head_dim=64, hidden_size=96, intermediate_size=136)


@pytest.fixture(scope="module")
def llama(tiny_llama):
    return tiny_llama(seed=5)


@pytest.fixture(scope="module")
def stranger(tiny_llama):
    """A draft model of another form, which is right by luck only."""
    return tiny_llama(seed=6, num_hidden_layers=1, hidden_size=32, num_attention_heads=2)


def relative_of(folder, path):
    """A model whose weights are nearly the same: often right."""
    shutil.copytree(folder, path)
    weights = load_file(path / "model.safetensors")
    generator = torch.Generator().manual_seed(random.getrandbits(60))
    noisy = {
        name: one * (1 + 0.02 * torch.randn(one.shape, generator=generator))
        for name, one in weights.items()
    }
    save_file(noisy, path / "model.safetensors", metadata={"format": "pt"})
    return path


def drafted(engines, folder, draft, **knobs):
    defaults = {"speculative_model": str(draft), "num_speculative_tokens": 5, **NO_LOOKUP}
    return engines.make(folder, **(defaults | knobs))


def model_of(engine) -> DraftModel:
    return engine._scheduler._drafting._drafters[MODEL]


def counts_of(engine):
    return engine.stats().drafts[MODEL]


def check_clean(engine) -> None:
    model = model_of(engine)
    assert model.num_blocks_used == 0
    assert not model._records and not model._steps.num_sequences
    model._cache.check_invariants()
    assert engine.stats().kv_blocks_used == 0


def plain_requests(engines, rng, count=6, longest=60, **sampling):
    """Make requests whose tokens are drawn from the model's distribution as it is."""
    return [
        engines.request(
            str(i),
            [rng.randrange(400) for _ in range(rng.randrange(1, longest))],
            **({"max_tokens": rng.randrange(20, 40), "seed": rng.getrandbits(60)} | sampling),
        )
        for i in range(count)
    ]


@pytest.mark.each_value
@pytest.mark.parametrize("overlap", ["off", "on"])
def test_any_requests(engines, folder, stranger, rng, tmp_path, overlap):
    requests = make_requests(engines, rng, 6, (10, 30))
    arrivals = [rng.randrange(20) for _ in requests]
    doomed = {r.request_id: rng.randrange(2, 40) for r in rng.sample(requests, 2)}
    expected = without_drafts(engines, folder, requests)
    for draft in (folder, relative_of(folder, tmp_path / "relative"), stranger):
        engine = drafted(
            engines,
            folder,
            draft,
            async_scheduling=overlap,
            max_num_batched_tokens=rng.choice([9, 64, 512]),
            prompt_lookup_min=rng.choice([1, 64]),
        )
        found = outcome(engines.run(engine, requests, arrivals=arrivals, aborts=doomed))
        check_outcome(found, expected, doomed)
        check_clean(engine)


@pytest.mark.pairwise
@pytest.mark.parametrize("overlap", ["off", "on"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_twin_is_always_right(engines, folder, rng, temperature, overlap):
    """Whatever the temperature: it draws with the same random numbers."""
    engine = drafted(engines, folder, folder, async_scheduling=overlap)
    requests = plain_requests(engines, rng, temperature=temperature, ignore_eos=True)
    done = engines.run(engine, requests)
    counts = counts_of(engine)
    assert counts.num_accepted_tokens == counts.num_draft_tokens
    assert counts.num_draft_tokens > sum(len(one.token_ids) for one in done.values()) / 2


def test_a_twin_in_fewer_bits(engines, llama, rng):
    requests = plain_requests(engines, rng)
    expected = without_drafts(engines, llama, requests)
    engine = drafted(engines, llama, llama, speculative_quantization="int8-weights")
    assert outcome(engines.run(engine, requests)) == expected
    assert counts_of(engine).num_draft_tokens > 0


def test_preemption(engines, folder, rng, tmp_path):
    """The draft cache is as small as the model's. Short prompts all start, and all grow."""
    requests = plain_requests(engines, rng, longest=16, max_tokens=80, ignore_eos=True)
    expected = without_drafts(engines, folder, requests, max_model_len=14 * 16)
    relative = relative_of(folder, tmp_path / "relative")
    engine = drafted(engines, folder, relative, **cramped(folder))
    assert outcome(engines.run(engine, requests)) == expected
    assert engine.stats().num_preemptions > 0
    assert counts_of(engine).num_draft_tokens > 0
    check_clean(engine)


def test_a_prompt_that_was_read_before_is_found_again(engines, llama, rng):
    engine = drafted(engines, llama, llama)
    prompt = [rng.randrange(400) for _ in range(200)]
    num_read = []
    launch = model_of(engine)._steps._executor.launch

    def counting(decision):
        num_read.append(decision.num_tokens)
        return launch(decision)

    model_of(engine)._steps._executor.launch = counting
    for name in "ab":
        num_read.clear()
        engines.run(engine, [engines.request(name, prompt, max_tokens=8, ignore_eos=True)])
    assert sum(num_read) < 60


@pytest.mark.parametrize("named", ["shapes", "./shapes", "a.gguf", "empty"])
def test_the_setting_is_blamed_and_not_the_model(engines, llama, tmp_path, monkeypatch, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelLoadError, match=r"^speculative_model") as refused:
        drafted(engines, llama, named)
    assert refused.value.param == "speculative_model"
    assert named.removeprefix("./") in refused.value.message


def test_another_vocabulary_is_refused(engines, llama, rng, tmp_path):
    other = shutil.copytree(llama, tmp_path / "other")
    content = json.loads((other / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab["A"], vocab["B"] = vocab["B"], vocab["A"]
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelLoadError, match=r"the model's vocabulary: 2 of .* differ") as refused:
        drafted(engines, llama, other)
    assert refused.value.param == "speculative_model"


@pytest.mark.parametrize("is_draft_larger", [True, False])
def test_one_of_them_may_have_tokens_at_the_end_that_the_other_has_not(
    engines, tiny_llama, rng, is_draft_larger
):
    small, large = tiny_llama(seed=5), tiny_llama(seed=5, vocab_size=600)
    model, draft = (small, large) if is_draft_larger else (large, small)
    requests = plain_requests(engines, rng, 14, temperature=1.0, ignore_eos=True)
    if not is_draft_larger:
        requests.append(engines.request("unknown", [599, 5, 7], max_tokens=20))
    expected = without_drafts(engines, model, requests)
    engine = drafted(engines, model, draft)
    assert outcome(engines.run(engine, requests)) == expected
    assert counts_of(engine).num_draft_tokens > 0
    check_clean(engine)


def test_what_cannot_guess_is_refused(engines, llama, tiny_mamba):
    with pytest.raises(InvalidParameter, match="for example to 8"):
        drafted(engines, llama, llama, num_speculative_tokens=0)
    with pytest.raises(ModelLoadError, match="not a text model"):
        drafted(engines, llama, "tandem-shapes")
    with pytest.raises(ModelLoadError, match="has recurrent states"):
        drafted(engines, llama, tiny_mamba())


def test_nobody_drafts_under_load(engines, llama, rng, monkeypatch):
    """Steps of many rows, where rows are dear, and draft steps that take longer than they save."""
    prices = {"rows": Price(0.3, 1000.0, 1), "steps": Price(0.02, 1e-7, 1)}
    for dear, price in prices.items():
        monkeypatch.setattr(StepBudget, "price", lambda budget, decodes, price=price: price)
        engine = drafted(engines, llama, llama)
        engines.run(engine, plain_requests(engines, rng, ignore_eos=True))
        num_tried = 0 if dear == "rows" else 6 + TRIAL_STEPS
        assert counts_of(engine).num_drafts <= num_tried, "the first ones and a trial find it out"
        check_clean(engine)


def test_its_errors_are_nobodys(engines, llama, rng):
    requests = plain_requests(engines, rng, 2)
    expected = without_drafts(engines, llama, requests)
    engine = drafted(engines, llama, llama)
    model = model_of(engine)
    launch, num_calls = model._steps._executor.launch, 0

    def fragile(decision):
        nonlocal num_calls
        num_calls += 1
        if num_calls % 5 == 4:
            raise RuntimeError("no such kernel")
        return launch(decision)

    model._steps._executor.launch = fragile
    for _ in range(2):
        assert outcome(engines.run(engine, requests)) == expected
        assert model._pause > FAILURE_PAUSE - 200
        model._pause = 0
    assert num_calls >= 8
    check_clean(engine)


def test_numbers_that_are_not_finite_are_no_guesses(engines, llama, rng, monkeypatch):
    requests = plain_requests(engines, rng)
    expected = without_drafts(engines, llama, requests)
    engine = drafted(engines, llama, llama)
    runner = model_of(engine)._steps._executor
    logits_of = ModelRunner._logits_to_sample

    def broken(of, rows, hidden):
        logits = logits_of(of, rows, hidden)
        return torch.full_like(logits, torch.nan) if of is runner else logits

    monkeypatch.setattr(ModelRunner, "_logits_to_sample", broken)
    assert outcome(engines.run(engine, requests)) == expected
    assert counts_of(engine).num_drafts == 0
    check_clean(engine)


def test_what_is_taken_is_what_the_definition_draws(rng):
    """Drafts of any distribution: tokens come as the definition draws them from the model's own,
    one after the other, and no draft decides which, but how many."""
    num_tokens, num_taken = 40, Counter()
    for case in range(30):
        noise = (0.0, 0.5, 3.0)[case % 3]
        sampling = SamplingParams(temperature=rng.choice([0.0, 0.5, 1.0]), top_p=0.95)
        drafter, sampler = (Sampler(num_tokens, torch.device("cpu")) for _ in range(2))
        for one in (drafter, sampler):
            one.add(NewSequence(0, [], sampling, case, 0, ()))
        generator = torch.Generator().manual_seed(rng.getrandbits(60))
        logits, other = torch.randn(2, 5, num_tokens, generator=generator)
        others = logits + noise * other
        drafts = [
            drafter.sample(others[i : i + 1], [SampleRow(0, 7 + i)])[0].token_id for i in range(4)
        ]
        rows = [SampleRow(0, 7 + i, drafts[i - 1] if i else None) for i in range(5)]
        found = [token.token_id for token in sampler.sample(logits, rows) if token is not None]
        to_draw = sampler._to_draw(logits, sampler._states_of(logits, rows), rows)
        defined = reference.sample_tokens(*to_draw).token_ids.tolist()
        num_right = next((i for i in range(4) if drafts[i] != defined[i]), 4)
        assert found == defined[: num_right + 1]
        assert noise or num_right == 4, "equal logits draw equal tokens"
        num_taken[len(found)] += 1
    assert num_taken[5] >= 10


@dataclass
class ReadingExecutor(PagedExecutor):
    """Of a draft model that knows the model, and is wrong now and then. It knows texts from the
    scheduler, and what it has drawn itself behind them."""

    is_right: float = 1.0
    rng: random.Random | None = None

    def _learn_text(self, entry: ScheduledSequence) -> None:
        sequence = self.scheduler._sequences.find(entry.seq_id)
        state = self.sequences[entry.seq_id]
        prompt = sequence.owner.request.prompt_token_ids
        state.new = replace(state.new, prompt_token_ids=prompt)
        if entry.start < len(sequence.token_ids):
            state.history = list(sequence.token_ids)

    def _attend(self, entry: ScheduledSequence) -> SequenceOutput:
        output = super()._attend(entry)
        if output.token_ids and self.rng.random() > self.is_right:
            output.token_ids[-1] = (output.token_ids[-1] + 1) % VOCAB_SIZE
            self.sequences[entry.seq_id].history[-1] = output.token_ids[-1]
        return output


class DraftSession(OverlappedSession):
    """A random run, with a draft model of any layout and any size of its cache."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rng = self.rng
        knobs = {"async_scheduling": rng.random() < 0.5}
        knobs["num_speculative_tokens"] = rng.randint(1, 7)
        self.run_by_engine(AccountedExecutor, **knobs)
        windows = random_windows(rng)
        config = replace(
            self.config,
            num_kv_blocks=rng.choice([1, 5, 20, 100]) * len(windows),
            max_model_len=rng.choice([1, 2]) * self.config.max_model_len // 2,
        )
        reader = ReadingExecutor(config, rng.choice([0, 0, 100]), windows, scheduler=self.scheduler)
        reader.rng, reader.is_right = rng, rng.choice([0.1, 0.8, 1.0])
        ticks = itertools.count()
        self.drafter = DraftModel(
            config,
            reader,
            windows=windows,
            vocab_size=VOCAB_SIZE - rng.choice([0, 0, 1]),
            target_vocab_size=VOCAB_SIZE,
            clock=lambda: next(ticks) / 1000,
        )
        self.scheduler._drafting = Drafting(self.config, {MODEL: self.drafter})

    def check_end(self) -> None:
        super().check_end()
        assert self.drafter._pause == 0, "it failed"
        assert self.drafter.num_blocks_used == 0
        assert not self.drafter._records and not self.drafter._steps.num_sequences
        self.drafter._cache.check_invariants()
        counts = self.scheduler.stats().drafts[MODEL]
        self.seen["right"] += counts.num_accepted_tokens
        self.seen["wrong"] += counts.num_draft_tokens - counts.num_accepted_tokens
        self.seen["its copies"] += self.drafter._steps._executor.num_copies


def test_any_load_is_read_as_it_is() -> None:
    seen = run_sessions(DraftSession, 25)
    assert seen["right"] and seen["wrong"] and seen["aborted"]


def drafted_with(times_s, requests, rng) -> tuple[list[int], int]:
    """Draft with a model that is always right and whose steps take these times, where those of the
    main model take 1000 s. Returns the number of tokens drafted in each step of decodes, and the
    number of the draft model's steps."""
    config = make_config(num_kv_blocks=512, max_model_len=512, num_speculative_tokens=5)
    scheduler, executor = make_scheduler(config), PagedExecutor(config)
    reader = ReadingExecutor(config, scheduler=scheduler, rng=rng)
    readings = itertools.accumulate(x for step_s in times_s for x in (0.0, step_s))
    drafter = DraftModel(
        config,
        reader,
        windows=(None,),
        vocab_size=VOCAB_SIZE,
        target_vocab_size=VOCAB_SIZE,
        clock=lambda: next(readings),
    )
    scheduler._drafting = Drafting(config, {MODEL: drafter})
    for request in requests:
        scheduler.add(request)
    num_drafted = []
    while scheduler.has_work():
        decision = scheduler.schedule()
        if all(one.is_decode for one in decision.scheduled):
            num_drafted.append(sum(len(one.drafts) for one in decision.scheduled))
        scheduler.commit(decision, executor.execute(decision))
    assert drafter._pause == 0, "it failed"
    return num_drafted, reader.num_steps


def test_a_draft_model_whose_first_steps_are_slow_drafts_later(rng) -> None:
    """All steps of the first draft are slow, so its price is too high."""
    num_slow = rng.randint(5, 8)
    times_s = itertools.chain(itertools.repeat(1e6, num_slow), itertools.repeat(1.0))
    request = make_request("a", rng.randint(1, 60), max_tokens=440)
    num_drafted, _ = drafted_with(times_s, [request], rng)
    three_trials = 32 + 64 + 128 + 3 * TRIAL_STEPS
    assert sum(num_drafted[: three_trials + 10]) > 20
    assert sum(num_drafted) > 120


def test_a_draft_model_that_stays_slow_is_tried_rarely(rng) -> None:
    """Some texts are unread when a trial begins, and long."""
    requests = [make_request(str(i), rng.randint(1, 200), max_tokens=150) for i in range(60)]
    num_drafted, num_steps = drafted_with(itertools.repeat(1e6), requests, rng)
    assert len(num_drafted) > 500
    num_first = 5
    assert 2 * TRIAL_STEPS <= num_steps <= num_first + 20 + len(num_drafted) / 257


def test_a_cache_gives_way_but_not_to_itself() -> None:
    config = make_config(num_kv_blocks=4, block_size=4)
    cache = DraftCache(config, (None,))
    scheduler = make_scheduler(config)
    texts = []
    for name in "abc":
        scheduler.add(make_request(name, 8))
    sequences = list(scheduler._sequences.waiting)
    for sequence in sequences:
        texts.append(cache.open(sequence))
    ids = [sequence.seq_id for sequence in sequences]
    assert cache.reserve(texts[0], 8, ids[:1]) and cache.reserve(texts[1], 8, ids[:2])
    assert not cache.reserve(texts[2], 8, ids), "all are in use"
    assert not cache.reserve(texts[2], 17, ids[2:]), "nobody gives way in vain"
    assert cache.num_blocks_used == 4
    assert cache.reserve(texts[2], 8, ids[1:]), "the first does"
    cache.check_invariants()
    for seq_id in ids:
        cache.close(seq_id)
    assert cache.num_blocks_used == 0
