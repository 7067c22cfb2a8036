"""Log-probabilities against torch's own log-softmax in double precision."""

import numpy as np
import pytest
import torch

from engine.errors import InternalError
from engine.llm.sampling.logprobs import LEAST_LOGPROB, token_logprobs
from engine.llm.sampling.sampler import Sampler


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_rows", [1, 31, 70])
def test_values_ranks_and_alternatives(num_rows: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(num_rows, 700) * 5).to(dtype)
    targets = torch.randint(700, (num_rows,)).tolist()
    num_top = torch.randint(0, 21, (num_rows,)).tolist()
    expected = logits.double().log_softmax(-1).numpy()
    for i, score in enumerate(token_logprobs(logits, targets, num_top)):
        row = expected[i]
        assert score.token_id == targets[i]
        assert score.logprob == pytest.approx(row[targets[i]], abs=1e-5)
        # The logits decide what is a tie: distinct ones may have equal log-probabilities in fp32.
        exact = logits[i].float().numpy()
        surprises = -row
        entropy = float(np.exp(row) @ surprises)
        assert score.entropy == pytest.approx(entropy, abs=1e-5)
        variance = float(np.exp(row) @ (surprises - entropy) ** 2)
        assert score.varentropy == pytest.approx(variance, rel=1e-4, abs=1e-4)
        assert score.rank == 1 + int((exact > exact[targets[i]]).sum())
        order = np.argsort(-exact, kind="stable")[: num_top[i]]
        assert score.top_ids == order.tolist()
        assert score.top_logprobs == pytest.approx(row[order], abs=1e-5)


def test_ties_count_for_nobody_s_rank_and_come_by_id() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 3.0, 2.0]])
    score = token_logprobs(logits, [4], [4])[0]
    assert score.rank == 3
    assert score.top_ids == [1, 3, 2, 4]


def test_impossible_tokens_have_a_finite_value() -> None:
    logits = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    score = token_logprobs(logits, [2], [3])[0]
    assert score.logprob == LEAST_LOGPROB
    assert score.top_logprobs == [0.0, LEAST_LOGPROB, LEAST_LOGPROB]
    assert score.top_ids == [0, 1, 2]
    # An exponential may leave the smallest of numbers there.
    assert score.entropy == pytest.approx(0.0, abs=1e-20)
    assert score.varentropy == pytest.approx(0.0, abs=1e-20)


def test_more_alternatives_than_tokens_are_all_tokens() -> None:
    score = token_logprobs(torch.tensor([[0.0, 1.0]]), [0], [20])[0]
    assert score.top_ids == [1, 0]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_non_finite_rows_are_refused(bad: float) -> None:
    logits = torch.zeros(3, 8)
    logits[1, 5] = bad
    with pytest.raises(InternalError, match="non-finite"):
        token_logprobs(logits, [0, 1, 2], [0, 0, 0])


def test_score_of_a_prompt() -> None:
    sampler = Sampler(300, torch.device("cpu"))
    logits = torch.randn(9, 300)
    scores = sampler.score(logits, list(range(9)), 2)
    assert [score.token_id for score in scores] == list(range(9))
    assert all(len(score.top_ids) == len(score.top_logprobs) == 2 for score in scores)
    assert sampler.score(logits[:0], [], 5) == []


def test_a_row_is_scored_alike_in_any_company() -> None:
    logits = torch.randn(40, 3000) * 3
    targets, num_top = list(range(40)), [5] * 40
    together = token_logprobs(logits, targets, num_top)
    for i in (0, 1, 31, 32, 39):
        assert token_logprobs(logits[i : i + 1], [i], [5]) == together[i : i + 1]
