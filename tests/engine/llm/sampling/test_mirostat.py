"""Mirostat 2 against llama.cpp's definition, written out; its state over steps taken again."""

import random
from typing import Any

import numpy as np
import pytest
import torch

from engine.contract.sampling_params import SamplingParams
from engine.errors import InvariantViolation
from engine.llm.decision import NewSequence
from engine.llm.sampling.sampler import Sampler, SampleRow

VOCAB = 300
SEED = random.randrange(1 << 31)


def _sampler(*params: dict[str, Any], first_id: int = 0) -> Sampler:
    sampler = Sampler(VOCAB, torch.device("cpu"))
    for seq_id, one in enumerate(params, first_id):
        sampling = SamplingParams(**({"mirostat": 2} | one))
        sampler.add(NewSequence(seq_id, [1], sampling, SEED, seq_id, ()))
    return sampler


def _logits(num: int = 1) -> torch.Tensor:
    return 2 * torch.randn(num, VOCAB)


def _draw(sampler: Sampler, logits: torch.Tensor, position: int) -> list[int]:
    rows = [SampleRow(seq_id, position) for seq_id in range(len(logits))]
    tokens = sampler.sample(logits, rows)
    assert all(token is not None and token.error is None for token in tokens)
    return [token.token_id for token in tokens if token is not None]


class Llama:
    """`llama_sampler_mirostat_v2`, for tokens that are drawn elsewhere."""

    def __init__(self, tau: float, eta: float) -> None:
        self.tau, self.eta, self.mu = tau, eta, 2 * tau

    def kept(self, logits: torch.Tensor, temperature: float) -> np.ndarray:
        self.p = (logits.double() / temperature).softmax(-1).numpy()
        kept = -np.log2(self.p) <= self.mu
        return kept if kept.any() else self.p == self.p.max()

    def accept(self, kept: np.ndarray, token_id: int) -> None:
        surprise = -np.log2(self.p[token_id] / self.p[kept].sum())
        self.mu -= self.eta * (surprise - self.tau)


@pytest.mark.parametrize(("tau", "eta"), [(5.0, 0.1), (2.0, 0.5), (0.0, 1.0), (100.0, 1.0)])
def test_it_equals_the_definition(tau: float, eta: float) -> None:
    params = {"mirostat_tau": tau, "mirostat_eta": eta, "temperature": 0.8}
    sampler, llama, num_close = _sampler(params), Llama(tau, eta), 0
    for position in range(80):
        logits = _logits()
        found = sampler.probabilities(logits, [SampleRow(0, position)])[0].numpy()
        kept = llama.kept(logits[0], 0.8)
        if not np.array_equal(found > 0, kept):
            margin = np.abs(-np.log2(llama.p) - llama.mu)[(found > 0) != kept]
            assert margin.max() < 1e-3, position
            num_close += 1
            kept = found > 0
        np.testing.assert_allclose(found, llama.p * kept / llama.p[kept].sum(), atol=1e-6)
        [token_id] = _draw(sampler, logits, position)
        llama.accept(kept, token_id)
    assert num_close <= 4


def test_the_surprise_comes_near_the_target() -> None:
    for tau in (1.0, 3.0):
        sampler, surprises = _sampler({"mirostat_tau": tau}), []
        for position in range(400):
            logits = _logits()
            p = sampler.probabilities(logits, [SampleRow(0, position)])[0]
            surprises.append(-float(p[_draw(sampler, logits, position)[0]].log2()))
        assert abs(np.mean(surprises[100:]) - tau) < 0.3


def test_other_steps_that_leave_tokens_out_do_nothing() -> None:
    logits = _logits(2)
    others = {"top_k": 2, "top_p": 0.1, "min_p": 0.9, "typical_p": 0.1, "top_n_sigma": 0.1,
              "xtc_probability": 1.0}  # fmt: skip
    sampler = _sampler({}, others)
    found = sampler.probabilities(logits[[0, 0]], [SampleRow(0, 0), SampleRow(1, 0)])
    assert torch.equal(found[0], found[1])
    assert int((found[0] > 0).sum()) > 2


def test_steps_taken_again_give_the_same_and_rows_are_alone() -> None:
    kinds: list[dict[str, Any]] = [{}, {"mirostat_tau": 1.0}, {"mirostat": 0}, {"temperature": 0.0}]
    steps = [_logits(4) for _ in range(20)]
    sampler = _sampler(*kinds)
    drawn = [_draw(sampler, logits, position) for position, logits in enumerate(steps)]
    for start in (12, 3, 0):
        for position in range(start, 20):
            assert _draw(sampler, steps[position], position) == drawn[position]
    for seq_id, kind in enumerate(kinds):
        alone = _sampler(kind, first_id=seq_id)
        for position, logits in enumerate(steps):
            [token] = alone.sample(logits[[seq_id]], [SampleRow(seq_id, position)])
            assert token is not None
            assert token.token_id == drawn[position][seq_id]


def test_a_mask_of_one_token_leaves_that_token() -> None:
    only = np.array([7], dtype="<i4").tobytes()
    sampler = _sampler({"allowed_token_ids": only, "top_n_sigma": 0.1, "dynatemp_range": 0.5})
    for position in range(200):
        assert _draw(sampler, torch.randn(1, VOCAB), position) == [7]


def test_a_position_beyond_the_text_is_a_bug() -> None:
    with pytest.raises(InvariantViolation, match="position 1"):
        _sampler({}).sample(torch.zeros(1, VOCAB), [SampleRow(0, 1)])
