"""Steps in any order: against double precision, and against transformers' warpers in that order."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from engine.contract.sampling_params import SamplingParams
from engine.llm.decision import NewSequence
from engine.llm.sampling.sampler import Sampler, SampleRow
from tests.helpers.llm import exact_distribution as exact

VOCAB_SIZE = 300
_WARPERS = {
    "temperature": TemperatureLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
    "typical_p": TypicalLogitsWarper,
}
CPU = torch.device("cpu")


def _random_case() -> tuple[dict[str, Any], list[str]]:
    values = {
        "top_n_sigma": random.uniform(0.5, 2.5),
        "temperature": random.uniform(0.4, 1.8),
        "dynatemp_range": random.choice([0.0, 0.4]),
        "top_k": random.randrange(2, 80),
        **{name: random.uniform(0.01, 0.99) for name in exact.SHARES},
        "min_p": random.uniform(0.01, 0.3),
        "xtc": 1.0,
    }
    order = random.sample(
        [name for name in values if name != "dynatemp_range"], random.randrange(1, len(values))
    )
    params = {name: values[name] for name in order if name != "xtc"}
    if "xtc" in order:
        params |= {"xtc_probability": 1.0, "xtc_threshold": random.uniform(0.01, 0.3)}
    if "temperature" in order:
        params["dynatemp_range"] = values["dynatemp_range"]
    return params, order


def _in_double(logits: np.ndarray, params: SamplingParams, order: list[str]) -> np.ndarray:
    """Each step on what the one before left, its probabilities made to sum to 1."""
    scale = 1.0
    for name in order:
        if name == "temperature":
            scale = exact.temperature_of(logits, params)
            continue
        if name == "top_n_sigma":
            logits = exact.keep_near_peak(logits, params.top_n_sigma)
            continue
        probabilities = exact.STEPS[name](exact.softmax(logits / scale), logits, params)
        logits = np.where(probabilities > 0, logits, -np.inf)
    return exact.softmax(logits / scale)


def _sampled(logits: torch.Tensor, params: SamplingParams) -> np.ndarray:
    sampler = Sampler(logits.shape[-1], CPU)
    sampler.add(NewSequence(0, [], params, 5, 0, ()))
    return sampler.probabilities(logits.unsqueeze(0), [SampleRow(0, 0)])[0].numpy()


def test_random_orders_equal_double_precision() -> None:
    """Thresholds of the two may fall on either side of one token, which hardly ever happens."""
    num_unlike = 0
    for _ in range(150):
        fields, order = _random_case()
        params = SamplingParams(**fields, order=tuple(order))
        logits = torch.randn(VOCAB_SIZE) * random.uniform(1, 5)
        found = _sampled(logits, params)
        expected = _in_double(logits.double().numpy(), params, order)
        num_unlike += not np.allclose(found, expected, atol=1e-5)
    assert num_unlike <= 4, num_unlike


def test_random_orders_equal_transformers() -> None:
    num_unlike = 0
    for _ in range(100):
        fields, order = _random_case()
        order = [name for name in order if name in _WARPERS]
        fields = {name: fields[name] for name in order}
        logits = torch.randn(VOCAB_SIZE) * 3
        scores = logits.double().unsqueeze(0)
        for name in order:
            scores = _WARPERS[name](fields[name])(None, scores)
        found = _sampled(logits, SamplingParams(**fields, order=tuple(order)))
        num_unlike += not np.allclose(found, scores.softmax(-1)[0].numpy(), atol=1e-5)
    assert num_unlike <= 4, num_unlike


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_usual_order_written_out_draws_the_usual_tokens(dtype: torch.dtype) -> None:
    usual = ("top_n_sigma", "temperature", "top_k", "top_p", "min_p", "typical_p", "xtc")
    fields = {
        "top_n_sigma": 2.0,
        "temperature": 0.9,
        "dynatemp_range": 0.3,
        "top_k": 60,
        "top_p": 0.95,
        "min_p": 0.01,
        "typical_p": 0.97,
        "xtc_probability": 0.5,
        "xtc_threshold": 0.05,
        "logit_bias": {3: 5.0, 7: -3.0},
        "repetition_penalty": 1.3,
    }
    logits = (torch.randn(40, VOCAB_SIZE) * 3).to(dtype)
    drawn = []
    for order in (None, usual):
        sampler = Sampler(VOCAB_SIZE, CPU)
        for i in range(40):
            params = SamplingParams(**fields, order=order)
            sampler.add(NewSequence(i, [3, 9, 11], params, 1000 + i, 0, ()))
        tokens = sampler.sample(logits, [SampleRow(i, 0) for i in range(40)])
        drawn.append([token.token_id for token in tokens])
    assert drawn[0] == drawn[1]


def test_neighbours_change_no_token_and_bad_rows_get_their_errors() -> None:
    orders = [None, ("top_p", "temperature"), ("xtc", "top_p"), None, ("min_p", "temperature")]
    logits = torch.randn(7, VOCAB_SIZE) * 4
    logits[5, 3] = torch.nan
    params = [
        SamplingParams(
            temperature=1.4,
            top_p=0.8,
            min_p=0.1,
            xtc_probability=0.5,
            order=orders[i % 5],
            logprobs=1,
        )
        for i in range(6)
    ]
    params.append(SamplingParams(temperature=1.4, order=("top_p", "temperature"), bad_words=()))
    nobody = np.array([1], dtype="<i4").tobytes()
    params[6] = SamplingParams(
        temperature=1.4,
        top_p=0.5,
        order=("top_p", "temperature"),
        allowed_token_ids=nobody,
        bad_words=((1,),),
    )

    def draw(rows: list[int]) -> list[Any]:
        sampler = Sampler(VOCAB_SIZE, CPU)
        for i in rows:
            sampler.add(NewSequence(i, [], params[i], 77 + i, 0, ()))
        return sampler.sample(logits[rows], [SampleRow(i, 0) for i in rows])

    together = draw([*range(7)])
    for i in range(7):
        (alone,) = draw([i])
        assert alone.token_id == together[i].token_id and alone.logprob == together[i].logprob
    assert "non-finite" in str(together[5].error)
    assert "no token" in str(together[6].error)
