"""The sampler against its slow twin and transformers, and what must never change a row's token."""

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
import torch

from engine.contract.sampling_params import SAMPLER_PARAMETERS, SamplingParams
from engine.errors import InvariantViolation
from engine.llm.decision import NewSequence
from engine.llm.sampling.sampler import SampledToken, Sampler, SampleRow
from tests.helpers.llm.exact_distribution import SHARES, distribution

CPU = torch.device("cpu")


def _sequence(
    seq_id: int, params: SamplingParams, *, seed: int = 0, index: int = 0, **rest: Any
) -> NewSequence:
    return NewSequence(
        seq_id=seq_id,
        prompt_token_ids=rest.get("prompt", []),
        sampling=params,
        seed=seed,
        index=index,
        suppressed_token_ids=rest.get("suppressed", ()),
    )


def _sampler(vocab_size: int, *params: SamplingParams, seed: int = 0) -> Sampler:
    """Sequence i has params[i] and seed `seed + i`."""
    sampler = Sampler(vocab_size, CPU)
    for i, p in enumerate(params):
        sampler.add(_sequence(i, p, seed=seed + i))
    return sampler


def _drawn(sampler: Sampler, logits: torch.Tensor) -> list[int]:
    """The first token of each sequence."""
    return [token.token_id for token in sampler.sample(logits, _rows(len(logits)))]


def _rows(num: int, position: int = 0) -> list[SampleRow]:
    return [SampleRow(i, position) for i in range(num)]


_TRIED_SHARES = (1e-9, 1e-6, 0.01, 0.02, 0.2, 0.3, 0.9, 0.95, 0.999)


def _random_params(rng: np.random.Generator, vocab_size: int) -> SamplingParams:
    choices: dict[str, Any] = {
        "temperature": float(rng.choice([0.0, 0.3, 0.7, 1.0, 1.0, 1.7])),
        "top_k": int(rng.choice([1, 2, 5, 40, 257, 300, vocab_size - 1, vocab_size, 10**6])),
        **{name: float(rng.choice(_TRIED_SHARES)) for name in SHARES},
        "top_n_sigma": float(rng.choice([0.3, 1.0, 2.5, rng.random() * 4])),
        "dynatemp_range": float(rng.choice([0.2, 0.9])),
        "dynatemp_exponent": float(rng.choice([0.0, 0.5, 3.0])),
        "xtc_probability": 1.0,
        "xtc_threshold": float(rng.choice([0.01, 0.1, rng.random() / 2])),
    }
    chosen = {name: value for name, value in choices.items() if rng.random() < 0.45}
    chosen["top_k"] = max(0, chosen.get("top_k", 0))
    return SamplingParams(**chosen)


def _random_logits(rng: np.random.Generator, vocab_size: int) -> torch.Tensor:
    """One row, fp32: smooth, with the ties of bf16, with few values, partly impossible, flat."""
    values = torch.from_numpy(rng.normal(0, rng.choice([0.3, 2.0, 5.0]), vocab_size)).float()
    kind = rng.integers(5)
    if kind == 1:
        return values.bfloat16().float()
    if kind == 2:
        return values.round()
    if kind == 3 and vocab_size > 1:
        return values.masked_fill(torch.from_numpy(rng.random(vocab_size) < 0.5), -torch.inf)
    if kind == 4:
        return torch.full((vocab_size,), float(values[0]))
    return values


def _is_close_call(
    logits: np.ndarray, params: SamplingParams, expected: np.ndarray, rng: np.random.Generator
) -> bool:
    """Whether changes of rounding size move the reference's own thresholds.

    Equal logits stay equal, so ties are no close calls.
    """
    values, which = np.unique(logits, return_inverse=True)
    for _ in range(20):
        shaken = (values + rng.normal(0, 2e-5, len(values)))[which]
        nearby = dataclasses.replace(
            params,
            **{name: getattr(params, name) * (1 + rng.normal(0, 1e-6)) for name in SHARES},
            top_n_sigma=params.top_n_sigma * (1 + rng.normal(0, 1e-6)),
            xtc_threshold=params.xtc_threshold * (1 + rng.normal(0, 1e-6)),
        )
        if not np.array_equal(distribution(shaken, nearby) > 0, expected > 0):
            return True
    return False


@pytest.mark.parametrize("name", SAMPLER_PARAMETERS)
def test_no_step_runs_ahead_of_what_needs_the_hosts_tokens(name: str) -> None:
    one = SAMPLER_PARAMETERS[name]
    value = one.choices[-1] if one.choices else one.le if one.le is not None else one.neutral
    params = SamplingParams(**{name: value})
    takers = [
        processor
        for processor in _sampler(50)._processors._processors
        if processor.add(_sequence(0, params, prompt=[1, 1])) and processor.needs_host_tokens
    ]
    assert bool(takers) == params.reads_text
    assert not takers or one.on_host


@pytest.mark.parametrize("vocab_size", [1, 2, 37, 300, 511])
def test_probabilities_equal_the_reference(vocab_size: int) -> None:
    rng = np.random.default_rng(random.randrange(2**32))
    num, num_close = 60, 0
    params = [_random_params(rng, vocab_size) for _ in range(num)]
    logits = torch.stack([_random_logits(rng, vocab_size) for _ in range(num)])
    logits[(logits == -torch.inf).all(1), 0] = 0.0
    got = _sampler(vocab_size, *params).probabilities(logits, _rows(num)).numpy()
    for i in range(num):
        row = logits[i].double().numpy()
        expected = distribution(row, params[i])
        if np.abs(got[i] - expected).max() > 2e-5 * max(1.0, expected.max()):
            assert _is_close_call(row, params[i], expected, rng), (i, params[i])
            num_close += 1
    assert num_close <= num // 4, num_close


def test_long_nuclei_of_a_real_vocabulary_equal_the_reference() -> None:
    rng = np.random.default_rng(random.randrange(2**32))
    vocab_size = 49_152
    params = [
        SamplingParams(top_p=0.95),
        SamplingParams(top_p=0.9, min_p=1e-5),
        SamplingParams(top_k=3000, top_p=0.8),
        SamplingParams(top_k=1000),
        SamplingParams(typical_p=0.9),
        SamplingParams(temperature=0.5, top_p=0.999),
    ]
    logits = torch.from_numpy(rng.normal(0, 2.5, (len(params), vocab_size))).float()
    got = _sampler(vocab_size, *params).probabilities(logits, _rows(len(params))).numpy()
    for i, p in enumerate(params):
        expected = distribution(logits[i].double().numpy(), p)
        # A token at the threshold may fall to either side of it by rounding; nothing more.
        num_different = int(((got[i] > 0) != (expected > 0)).sum())
        assert num_different <= 2 + int((expected > 0).sum()) // 500, (i, num_different)
        assert np.abs(got[i] - expected).sum() < 1e-3, i


def test_full_chain_equals_the_reference() -> None:
    seed = random.randrange(2**32)
    rng = np.random.default_rng(seed)
    vocab_size, num = 120, 30
    sampler = Sampler(vocab_size, CPU)
    sequences, outputs = [], []
    for i in range(num):
        bias = dict.fromkeys(rng.integers(0, vocab_size, 3).tolist(), float(rng.uniform(-5, 5)))
        params = dataclasses.replace(
            SamplingParams(temperature=float(rng.uniform(0.3, 1.5)), top_k=int(rng.integers(0, 9))),
            repetition_penalty=float(rng.uniform(0.7, 1.5)),
            frequency_penalty=float(rng.uniform(-1, 1)),
            presence_penalty=float(rng.uniform(-1, 1)),
            logit_bias=bias,
            min_tokens=int(rng.integers(0, 12)),
        )
        prompt = rng.integers(0, vocab_size, 10).tolist()
        sequences.append(_sequence(i, params, seed=seed + i, prompt=prompt, suppressed=(3, 7)))
        outputs.append(list[int]())
        sampler.add(sequences[-1])
    for position in range(10):
        logits = torch.from_numpy(rng.normal(0, 2, (num, vocab_size))).float()
        got = sampler.probabilities(logits, _rows(num, position)).numpy()
        tokens = sampler.sample(logits, _rows(num, position))
        for i, sequence in enumerate(sequences):
            expected = distribution(
                logits[i].double().numpy(),
                sequence.sampling,
                sequence.prompt_token_ids,
                outputs[i],
                sequence.suppressed_token_ids,
            )
            np.testing.assert_allclose(got[i], expected, atol=2e-5, err_msg=str(i))
            assert expected[tokens[i].token_id] > 0
            outputs[i].append(tokens[i].token_id)


@pytest.mark.parametrize("vocab_size", [50, 3001])
def test_masks_equal_transformers(vocab_size: int) -> None:
    from transformers.generation import logits_process as hf

    logits = torch.randn(8, vocab_size) * 3
    ids = torch.zeros(8, 1, dtype=torch.int64)
    cases: list[tuple[dict[str, Any], list[Any]]] = [
        ({"top_k": 7}, [hf.TopKLogitsWarper(7)]),
        ({"top_p": 0.83}, [hf.TopPLogitsWarper(0.83)]),
        ({"min_p": 0.07}, [hf.MinPLogitsWarper(0.07)]),
        ({"typical_p": 0.6}, [hf.TypicalLogitsWarper(0.6)]),
        ({"top_k": 1, "temperature": 3.0}, [hf.TopKLogitsWarper(1)]),
        ({"top_p": 1e-7}, [hf.TopPLogitsWarper(1e-7)]),
        (
            {"temperature": 0.7, "top_k": 30, "top_p": 0.9, "min_p": 0.03, "typical_p": 0.8},
            [
                hf.TemperatureLogitsWarper(0.7),
                hf.TopKLogitsWarper(30),
                hf.TopPLogitsWarper(0.9),
                hf.MinPLogitsWarper(0.03),
                hf.TypicalLogitsWarper(0.8),
            ],
        ),
    ]
    for params, warpers in cases:
        expected = logits.double()
        for warper in warpers:
            expected = warper(ids, expected)
        sampler = _sampler(vocab_size, *[SamplingParams(**params)] * 8)
        got = sampler.probabilities(logits, _rows(8))
        different = ((got > 0) != (expected > -torch.inf)).sum(-1)
        assert int(different.max()) <= 1, params  # a threshold within rounding
        assert int(different.sum()) <= 1, params
        if not different.any():
            assert torch.allclose(got, expected.softmax(-1), atol=1e-5), params


def _mixed(rng: np.random.Generator, num: int, vocab_size: int) -> list[NewSequence]:
    sequences = []
    for i in range(num):
        params = dataclasses.replace(
            _random_params(rng, vocab_size),
            logprobs=int(rng.integers(0, 4)) if rng.random() < 0.3 else None,
            frequency_penalty=0.3 if rng.random() < 0.3 else 0.0,
            logit_bias={1: 2.0} if rng.random() < 0.2 else {},
        )
        sequences.append(
            _sequence(i, params, seed=int(rng.integers(-(2**63), 2**63)), index=i % 3, prompt=[1])
        )
    return sequences


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [263, 1500, 8192])
def test_a_row_does_not_depend_on_its_company(vocab_size: int, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(random.randrange(2**32))
    num = 24
    sequences = _mixed(rng, num, vocab_size)
    logits = torch.stack([_random_logits(rng, vocab_size) for _ in range(num)]).to(dtype)
    logits[(logits == -torch.inf).all(1), 0] = 0.0

    def outcome(rows: list[int]) -> tuple[list[SampledToken], torch.Tensor]:
        sampler = Sampler(vocab_size, CPU)
        for i in rows:
            sampler.add(sequences[i])
        places = [SampleRow(i, 0) for i in rows]
        return sampler.sample(logits[rows], places), sampler.probabilities(logits[rows], places)

    tokens, probabilities = outcome(list(range(num)))
    companies = [rng.permutation(num)[: rng.integers(1, num + 1)].tolist() for _ in range(12)]
    for rows in [*companies, *[[i] for i in range(num)]]:
        got_tokens, got_probabilities = outcome(rows)
        assert got_tokens == [tokens[i] for i in rows], rows
        assert torch.equal(got_probabilities, probabilities[rows]), rows


def test_draws_do_not_depend_on_threads() -> None:
    logits = torch.randn(16, 40_000) * 2
    kinds = [
        SamplingParams(),
        SamplingParams(top_p=0.9),
        SamplingParams(top_k=50),
        SamplingParams(min_p=0.01),
    ] * 4
    seed = random.randrange(2**32)
    expected = _sampler(40_000, *kinds, seed=seed).sample(logits, _rows(16))
    torch.set_num_threads(2)
    assert _sampler(40_000, *kinds, seed=seed).sample(logits, _rows(16)) == expected


def test_the_key_is_seed_index_and_position() -> None:
    logits = torch.zeros(1, 30_000)

    def token(seed: int, index: int, position: int) -> int:
        sampler = Sampler(30_000, CPU)
        sampler.add(_sequence(5, SamplingParams(n=index + 1), seed=seed, index=index))
        return sampler.sample(logits, [SampleRow(5, position)])[0].token_id

    first = token(-7, 0, 3)
    assert first == token(-7, 0, 3)
    others = [token(-6, 0, 3), token(-7, 1, 3), token(-7, 0, 4), token(7, 0, 3)]
    assert len({first, *others}) >= 4


def test_sampling_a_position_again_gives_the_same_token() -> None:
    params = SamplingParams(frequency_penalty=1.5, repetition_penalty=1.2, top_p=0.9)
    sampler = _sampler(100, params)
    steps = [torch.randn(1, 100) for _ in range(20)]
    first = [sampler.sample(steps[i], _rows(1, i)) for i in range(20)]
    again = [sampler.sample(steps[i], _rows(1, i)) for i in range(5, 20)]
    assert again == first[5:]


def test_greedy_takes_the_first_maximum_after_penalties_and_bias() -> None:
    params = [
        SamplingParams(temperature=0),
        SamplingParams(temperature=0, logit_bias={6: 0.5}),
        SamplingParams(temperature=0, logit_bias={2: -0.5}),
        SamplingParams(temperature=0, seed=1, top_p=0.2, top_k=3, min_p=0.3, typical_p=0.1),
    ]
    logits = torch.zeros(4, 9)
    logits[:, [2, 5, 7]] = 1.0
    logits[1, 6] = 1.0
    assert _drawn(_sampler(9, *params), logits) == [2, 6, 5, 2]


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 1e-4, 1e-3])
def test_cold_is_greedy(temperature: float) -> None:
    logits = torch.randn(8, 5000) * 3
    logits[torch.arange(8), logits.argmax(-1)] += 0.2
    sampler = _sampler(5000, *[SamplingParams(temperature=temperature)] * 8)
    assert _drawn(sampler, logits) == logits.argmax(-1).tolist()


def test_top_k_one_is_greedy_even_among_ties() -> None:
    logits = (torch.randn(8, 500) * 2).round()
    sampler = _sampler(500, *[SamplingParams(top_k=1, temperature=2.0)] * 8)
    assert _drawn(sampler, logits) == logits.max(-1).indices.tolist()


def test_bad_rows_fail_alone() -> None:
    params = [
        SamplingParams(logprobs=2, top_p=0.9),
        SamplingParams(temperature=0),
        SamplingParams(frequency_penalty=1.0),
        SamplingParams(logit_bias={0: 5.0}),
        SamplingParams(typical_p=0.5, top_p=0.5),
        SamplingParams(top_k=4, logprobs=0),
        SamplingParams(logprobs=1),
    ]
    logits = torch.randn(7, 600)
    expected = _sampler(600, *params).sample(logits, _rows(7))
    assert all(token.error is None for token in expected)
    for bad in (torch.nan, torch.inf):
        for broken in range(7):
            spoilt = logits.clone()
            spoilt[broken, 311] = bad
            got = _sampler(600, *params).sample(spoilt, _rows(7))
            assert got[broken].token_id == -1
            assert got[broken].logprob is None
            assert "non-finite" in (got[broken].error or "")
            others = [i for i in range(7) if i != broken]
            assert [got[i] for i in others] == [expected[i] for i in others]
    for bad in (torch.nan, -torch.inf):
        spoilt = torch.full_like(logits, bad)
        assert all(token.error for token in _sampler(600, *params).sample(spoilt, _rows(7)))
    assert not _sampler(600, *params).probabilities(spoilt, _rows(7)).any()


def test_a_row_whose_last_token_is_suppressed_fails_alone() -> None:
    sampler = Sampler(10, CPU)
    sampler.add(_sequence(0, SamplingParams(min_tokens=1), suppressed=(4,)))
    sampler.add(_sequence(1, SamplingParams()))
    logits = torch.full((2, 10), -torch.inf)
    logits[:, 4] = 1.0
    tokens = sampler.sample(logits, _rows(2))
    assert "min_tokens" in str(tokens[0].error)
    assert tokens[1] == SampledToken(4)


def test_a_failed_row_does_not_enter_the_history() -> None:
    sampler = _sampler(10, SamplingParams(frequency_penalty=1.0))
    sampler.sample(torch.full((1, 10), torch.nan), _rows(1))
    with pytest.raises(InvariantViolation):
        sampler.sample(torch.zeros(1, 10), _rows(1, 1))


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1e30),
        SamplingParams(temperature=1e30, top_p=0.5),
        SamplingParams(temperature=1e30, typical_p=0.5),
        SamplingParams(temperature=1.1e-5),
        SamplingParams(top_p=1e-300),
        SamplingParams(top_p=1 - 1e-16),
        SamplingParams(top_k=2**31, top_p=1.0),
        SamplingParams(min_p=1.0),
        SamplingParams(typical_p=1e-300),
        SamplingParams(repetition_penalty=1e-30, frequency_penalty=1e30, top_p=0.9),
        SamplingParams(logit_bias={0: 1e30, 3: -1e30}, typical_p=0.9),
    ],
)
def test_extreme_parameters_draw_something(params: SamplingParams) -> None:
    rows = [torch.randn(700) * 3, torch.zeros(700), torch.linspace(-1, 1, 700) * 3e38]
    for row in rows:
        sampler = Sampler(700, CPU)
        sampler.add(_sequence(0, params, prompt=[0, 1, 699]))
        for position in range(3):
            (token,) = sampler.sample(row.unsqueeze(0), [SampleRow(0, position)])
            assert token.error is None
            assert 0 <= token.token_id < 700


def test_impossible_tokens_are_never_drawn() -> None:
    possible = torch.zeros(4096, dtype=torch.bool)
    possible[[1, 255, 256, 4095]] = True
    logits = torch.zeros(64, 4096).masked_fill(~possible, -torch.inf)
    params = [SamplingParams(), SamplingParams(top_p=0.99), SamplingParams(top_k=9),
              SamplingParams(typical_p=0.99)] * 16  # fmt: skip
    sampler = _sampler(4096, *params)
    for position in range(20):
        for token in sampler.sample(logits, _rows(64, position)):
            assert possible[token.token_id]


def test_layouts_and_dtypes() -> None:
    exact = (torch.randn(6, 640) * 4).bfloat16()
    params = [SamplingParams(), SamplingParams(top_p=0.8), SamplingParams(temperature=0),
              SamplingParams(presence_penalty=1.0), SamplingParams(top_k=3, logprobs=3),
              SamplingParams(typical_p=0.7)]  # fmt: skip
    expected = _sampler(640, *params).sample(exact, _rows(6))
    wide = torch.zeros(6, 1280, dtype=torch.bfloat16)
    wide[:, ::2] = exact
    variants = [exact.float(), exact.double(), exact.half(), exact.t().contiguous().t(),
                wide[:, ::2]]  # fmt: skip
    for variant in variants:
        before = variant.clone()
        assert _sampler(640, *params).sample(variant, _rows(6)) == expected
        assert torch.equal(variant, before)
    leaf = exact.float().requires_grad_()
    assert _sampler(640, *params).sample(leaf, _rows(6)) == expected


def test_logprobs_come_only_where_asked_and_from_unmodified_logits() -> None:
    params = [
        SamplingParams(temperature=0),
        SamplingParams(temperature=0, logprobs=0, logit_bias={3: 50.0}),
        SamplingParams(temperature=0.3, logprobs=2, top_k=1),
    ]
    logits = torch.randn(3, 50)
    plain = logits.log_softmax(-1)
    tokens = _sampler(50, *params).sample(logits, _rows(3))
    assert tokens[0].logprob is None
    biased, best = tokens[1].logprob, tokens[2].logprob
    assert biased is not None
    assert best is not None
    assert biased.token_id == tokens[1].token_id == 3
    assert biased.logprob == pytest.approx(float(plain[1, 3]), abs=1e-6)
    assert biased.top_ids == []
    assert best.rank == 1
    assert best.top_ids == plain[2].topk(2).indices.tolist()


def test_no_rows() -> None:
    sampler = Sampler(10, CPU)
    assert sampler.sample(torch.zeros(0, 10), []) == []
    assert sampler.probabilities(torch.zeros(0, 10), []).shape == (0, 10)


def test_misuse_is_reported() -> None:
    sampler = _sampler(10, SamplingParams())
    with pytest.raises(InvariantViolation, match="never added"):
        sampler.sample(torch.zeros(1, 10), [SampleRow(3, 0)])
    with pytest.raises(InvariantViolation, match="shape"):
        sampler.sample(torch.zeros(2, 10), _rows(1))
    with pytest.raises(InvariantViolation, match="shape"):
        sampler.sample(torch.zeros(1, 11), _rows(1))


def test_removing_ends_the_state_and_adding_starts_afresh() -> None:
    params = SamplingParams(temperature=0, frequency_penalty=5.0)
    sampler = _sampler(10, params)
    logits = torch.zeros(1, 10)
    assert [sampler.sample(logits, _rows(1, i))[0].token_id for i in range(3)] == [0, 1, 2]
    sampler.remove(0)
    sampler.remove(0)
    with pytest.raises(InvariantViolation):
        sampler.sample(logits, _rows(1, 3))
    sampler.add(_sequence(0, params))
    assert sampler.sample(logits, _rows(1))[0].token_id == 0


def test_adding_again_replaces_the_state() -> None:
    sampler = _sampler(10, SamplingParams(temperature=0, logit_bias={4: 9.0}))
    sampler.add(_sequence(0, SamplingParams(temperature=0)))
    assert sampler.sample(torch.zeros(1, 10), _rows(1))[0].token_id == 0


@pytest.mark.gpu
def test_cuda_draws_what_it_draws_alone() -> None:
    rng = np.random.default_rng(random.randrange(2**32))
    device = torch.device("cuda")
    sequences = _mixed(rng, 24, 8192)
    logits = torch.stack([_random_logits(rng, 8192) for _ in range(24)]).to(device)

    def tokens(rows: list[int]) -> list[SampledToken]:
        sampler = Sampler(8192, device)
        for i in rows:
            sampler.add(sequences[i])
        return sampler.sample(logits[rows], [SampleRow(i, 0) for i in rows])

    together = tokens(list(range(24)))
    for i in range(24):
        assert tokens([i])[0].token_id == together[i].token_id, i


def _with_drafts(rng: np.random.Generator, texts: dict[int, list[int]]) -> dict[int, list[int]]:
    """How each text may go on after what was drawn so far: right, nearly or not at all."""
    drafts = {}
    for seq_id, text in texts.items():
        guess = list(text[: int(rng.integers(0, 6))])
        if guess and rng.random() < 0.5:
            guess[int(rng.integers(len(guess)))] = int(rng.integers(40))
        drafts[seq_id] = guess
    return drafts


def test_drafts_bring_what_single_draws_bring() -> None:
    """Whatever counts of the tokens before, the tokens and scores are those of one row at a time,
    and drafts leave no trace."""
    rng = np.random.default_rng(random.randrange(2**32))
    num_accepted = num_void = 0
    for _ in range(20):
        vocab_size, num, length = 40, 4, 30
        logits = torch.from_numpy(rng.normal(0, 2, (num, length + 6, vocab_size))).float()
        prompts = rng.integers(0, vocab_size, (num, 12)).tolist()
        choices: dict[str, Any] = {
            "repetition_penalty": 1.3,
            "frequency_penalty": 0.4,
            "presence_penalty": 0.7,
            "dry_multiplier": 0.9,
            "dry_allowed_length": 1,
            "xtc_probability": 0.5,
            "logit_bias": {3: 2.0},
            "min_tokens": 20,
            "logprobs": 2,
        }
        params = [
            SamplingParams(
                temperature=float(rng.choice([0.0, 0.8])),
                **{name: value for name, value in choices.items() if rng.random() < 0.5},
            )
            for _ in range(num)
        ]
        samplers = [Sampler(vocab_size, CPU) for _ in range(2)]
        for sampler in samplers:
            for i in range(num):
                sampler.add(_sequence(i, params[i], seed=i, prompt=prompts[i], suppressed=(1, 2)))
        alone, drafting = samplers
        expected: dict[int, list[SampledToken | None]] = {
            i: [alone.sample(logits[i, at : at + 1], [SampleRow(i, at)])[0] for at in range(length)]
            for i in range(num)
        }
        texts = {i: [token.token_id for token in one] for i, one in expected.items()}
        found: dict[int, list[SampledToken]] = {i: [] for i in range(num)}
        while any(len(found[i]) < length for i in found):
            rest = {i: texts[i][len(found[i]) :] for i in found if len(found[i]) < length}
            rows, places = [], []
            for i, guess in _with_drafts(rng, rest).items():
                start = len(found[i])
                rows += [SampleRow(i, start)]
                rows += [SampleRow(i, start + n, token) for n, token in enumerate(guess, 1)]
                places += [(i, start + n) for n in range(len(guess) + 1)]
            step = torch.stack([logits[i, at] for i, at in places])
            for row, token in zip(rows, drafting.sample(step, rows), strict=True):
                num_void += token is None
                num_accepted += token is not None and row.draft is not None
                if token is not None:
                    found[row.seq_id].append(token)
        for i in found:
            assert found[i][:length] == expected[i], params[i]
    assert min(num_accepted, num_void) > 100


def test_a_row_behind_an_error_is_void() -> None:
    sampler = _sampler(10, SamplingParams(temperature=0.0, repetition_penalty=1.1))
    logits = torch.zeros(3, 10)
    logits[0, 4] = 1.0
    logits[1, 3] = torch.nan
    rows = [SampleRow(0, 0), SampleRow(0, 1, draft=4), SampleRow(0, 2, draft=5)]
    first, second, third = sampler.sample(logits, rows)
    assert first is not None and first.token_id == 4
    assert second is not None and second.error is not None
    assert third is None
    logits[1, 3], logits[1, 5] = 0.0, 1.0
    again = sampler.sample(logits[1:], [SampleRow(0, 1), SampleRow(0, 2, draft=6)])
    assert [token and token.token_id for token in again] == [5, None]
