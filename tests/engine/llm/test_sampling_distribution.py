"""How often tokens come: chi-square and z tests of draws against the reference distribution.

Thresholds are set so that a correct sampler fails one run in ten million or less; seeds are fresh.
"""

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from engine.contract.sampling_params import SamplingParams
from engine.llm.decision import NewSequence
from engine.llm.sampling.sampler import Sampler, SampleRow
from kernels.sample_tokens import noise
from tests.helpers.llm.exact_distribution import distribution

LEAST_P_VALUE = 1e-9
NUM_SEQUENCES = 500


def _draws(
    logits: torch.Tensor,
    params: SamplingParams,
    num_positions: int,
    seed: int | None = None,
    index: int = 0,
) -> np.ndarray:
    """[num_positions, NUM_SEQUENCES] tokens, all from one row of logits [V], by a new seed."""
    seed = random.randrange(2**62) if seed is None else seed
    sampler = Sampler(len(logits), torch.device("cpu"))
    for i in range(NUM_SEQUENCES):
        sampler.add(NewSequence(i, [], params, seed + i, index, ()))
    step = logits.expand(NUM_SEQUENCES, -1)
    return np.array(
        [
            [t.token_id for t in sampler.sample(step, _rows(position))]
            for position in range(num_positions)
        ]
    )


def _rows(position: int) -> list[SampleRow]:
    return [SampleRow(i, position) for i in range(NUM_SEQUENCES)]


def _p_value(tokens: np.ndarray, expected: np.ndarray) -> float:
    """Chi-square with the rare tokens pooled, so that every cell expects at least twenty."""
    counts = np.bincount(tokens.ravel(), minlength=len(expected)).astype(float)
    wanted = expected * tokens.size
    common = wanted >= 20
    if not common.all() and wanted[~common].sum() >= 20:
        observed = np.append(counts[common], counts[~common].sum())
        wanted = np.append(wanted[common], wanted[~common].sum())
    else:
        observed, wanted = counts[common], wanted[common]
        wanted *= observed.sum() / wanted.sum()
    if len(wanted) == 1:
        return 1.0
    return float(stats.chisquare(observed, wanted).pvalue)


@pytest.mark.parametrize(
    ("params", "num_positions"),
    [
        ({}, 40),
        ({"temperature": 0.6}, 40),
        ({"temperature": 1.8}, 40),
        ({"top_k": 7}, 40),
        ({"top_p": 0.8}, 40),
        ({"min_p": 0.1}, 40),
        ({"top_k": 20, "top_p": 0.9, "min_p": 0.02, "temperature": 0.8}, 40),
        ({"top_p": 0.97, "temperature": 1.5}, 6),
        ({"typical_p": 0.7}, 6),
    ],
    ids=str,
)
def test_draws_follow_the_distribution(params: dict[str, Any], num_positions: int) -> None:
    """Fewer draws where the sampler goes row by row."""
    logits = torch.randn(300) * 1.5
    sampling = SamplingParams(**params)
    expected = distribution(logits.double().numpy(), sampling)
    tokens = _draws(logits, sampling, num_positions)
    assert expected[tokens].min() > 0
    p_value = _p_value(tokens, expected)
    assert p_value > LEAST_P_VALUE, p_value


def test_the_test_notices_a_wrong_temperature() -> None:
    logits = torch.randn(300) * 1.5
    tokens = _draws(logits, SamplingParams(temperature=1.15), 40)
    expected = distribution(logits.double().numpy(), SamplingParams())
    assert _p_value(tokens, expected) < LEAST_P_VALUE


def test_ties_share_evenly() -> None:
    tokens = _draws(torch.zeros(64), SamplingParams(), 40)
    assert _p_value(tokens, np.full(64, 1 / 64)) > LEAST_P_VALUE


def test_the_tail_of_a_large_vocabulary_is_not_lost() -> None:
    """One likely token over a flat tail of 100 000 that together are as likely."""
    seed = random.randrange(2**62)
    vocab_size, num_tail = 100_001, 100_000
    logits = torch.zeros(vocab_size)
    logits[500] = float(np.log(num_tail))
    sampler = Sampler(vocab_size, torch.device("cpu"))
    for i in range(16):
        sampler.add(NewSequence(i, [], SamplingParams(), seed + i, 0, ()))
    step = logits.expand(16, -1).contiguous()
    tokens = np.array(
        [
            token.token_id
            for position in range(60)
            for token in sampler.sample(step, [SampleRow(i, position) for i in range(16)])
        ]
    )
    num = len(tokens)
    deviation = (np.sum(tokens != 500) - num / 2) / np.sqrt(num / 4)
    assert abs(deviation) < 6, deviation
    tail = tokens[tokens != 500]
    middle = (np.sum(tail < vocab_size // 2) - len(tail) / 2) / np.sqrt(len(tail) / 4)
    assert abs(middle) < 6, middle


def test_positions_and_children_are_independent() -> None:
    seed = random.randrange(2**62)
    logits = torch.zeros(8)
    first = _draws(logits, SamplingParams(n=2), 40, seed)
    second = _draws(logits, SamplingParams(n=2), 40, seed, index=1)
    uniform = np.full(64, 1 / 64)
    for name, pairs in {
        "positions": first[:-1] * 8 + first[1:],
        "sequences": first[:, :-1] * 8 + first[:, 1:],
        "children": first * 8 + second,
    }.items():
        assert _p_value(pairs, uniform) > LEAST_P_VALUE, name


def test_the_token_drawn_is_the_first_of_the_key_s_exponential_times() -> None:
    seed = random.randrange(2**62)
    tokens = _draws(torch.zeros(1024), SamplingParams(), 3, seed)
    for i in range(NUM_SEQUENCES):
        times = noise.exponentials(
            1024, seed=seed + i, index=0, position=2, device=torch.device("cpu")
        )
        assert tokens[2, i] == int(times.argmin())


def test_penalised_text_has_the_reference_s_frequencies() -> None:
    """Under a strong presence penalty the first steps are draws without replacement, nearly."""
    logits = torch.randn(12)
    params = SamplingParams(presence_penalty=1.0, frequency_penalty=0.5, repetition_penalty=1.1)
    tokens = _draws(logits, params, 3)
    base = logits.double().numpy()
    expected: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        expected = {
            (*text, token): chance * float(p)
            for text, chance in expected.items()
            for token, p in enumerate(distribution(base, params, (), text))
        }
    counts = Counter(tuple(text) for text in tokens.T.tolist())
    texts = sorted(expected)
    numbers = np.repeat(np.arange(len(texts)), [counts[text] for text in texts])
    p_value = _p_value(numbers, np.array([expected[text] for text in texts]))
    assert p_value > LEAST_P_VALUE, p_value
