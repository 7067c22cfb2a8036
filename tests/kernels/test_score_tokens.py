"""What a client learns of a token does not depend on what others in the batch ask for."""

import pytest
import torch

from kernels import _triton, score_tokens

CPU = torch.device("cpu")
DEVICES = {"triton": torch.device("cuda" if torch.cuda.is_available() else "cpu")}
"""Triton's kernels are interpreted where there is no GPU."""


@pytest.fixture(params=["cpu", "triton"])
def run(request, monkeypatch):
    monkeypatch.setattr(_triton, "runs_on", lambda *tensors: True)
    implementation = score_tokens.implementations()[request.param]
    device = DEVICES.get(request.param, CPU)

    def score(logits, token_ids, num_top):
        arguments = logits.to(device), token_ids.to(device), num_top
        assert implementation.supports(*arguments)
        return implementation.function(*arguments)

    return score


def test_more_alternatives_change_nothing_else(run):
    logits = (torch.randn(3, 9001) * 4).bfloat16()
    token_ids = torch.randint(9001, (3,))
    most = run(logits, token_ids, 32)
    for num_top in (0, 1, 5, 31):
        scores = run(logits, token_ids, num_top)
        assert torch.equal(scores.logprobs, most.logprobs)
        assert torch.equal(scores.ranks, most.ranks)
        assert torch.equal(scores.top_ids, most.top_ids[:, :num_top])
        assert torch.equal(scores.top_logprobs, most.top_logprobs[:, :num_top])


def test_an_alternative_has_the_bits_that_it_has_as_the_chosen_token(run):
    logits = torch.randn(1, 5000).repeat(20, 1) * 4
    top = run(logits[:1], torch.zeros(1, dtype=torch.int64), 20)
    scores = run(logits, top.top_ids[0], 0)
    assert torch.equal(scores.logprobs, top.top_logprobs[0])
    assert scores.ranks.tolist() == list(range(1, 21))
