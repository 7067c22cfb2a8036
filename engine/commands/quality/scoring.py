"""Scores a passage's tokens with one model, or compares it with another. Passages come one at a
time, and only the logits of a few rows exist at once."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from engine.commands.quality.scored_model import ScoredModel
from engine.errors import ModelLoadError
from engine.text.scores.passages import first_scored
from engine.text.scores.sums import LEAST_LOGPROB, Comparison, TokenScore
from kernels import score_tokens

ROWS = 128
"""The number of rows whose logits exist at one time."""


@torch.inference_mode()
def passage_scores(
    model: ScoredModel,
    token_ids: Sequence[int],
    original: ScoredModel | None = None,
    *,
    first: int | None = None,
) -> list[TokenScore]:
    """The scores of the passage's scored tokens, in order.

    Args:
        original: a model with the same vocabulary to compare with.
        first: the index of the first scored token, at least 1; that of a passage by default.

    Raises:
        ModelLoadError: the logits are not finite.
    """
    # A token's distribution is that of the row before it.
    before = (first_scored(len(token_ids)) if first is None else first) - 1
    targets = torch.tensor(token_ids[before + 1 :], device=model.device)
    states = model.states(token_ids)[before:-1]
    others = None if original is None else original.states(token_ids)[before:-1]
    scores: list[TokenScore] = []
    for at in range(0, len(targets), ROWS):
        piece = slice(at, at + ROWS)
        logits = model.logits(states[piece])
        surprises = _surprises(logits, targets[piece])
        if original is None or others is None:
            scores += map(TokenScore, surprises)
        else:
            theirs = original.logits(others[piece])
            scores += map(TokenScore, surprises, _compared(logits, theirs, targets[piece]))
    return scores


def _surprises(logits: Tensor, targets: Tensor) -> list[float]:
    scores = score_tokens(logits, targets, 0)
    if not bool(scores.is_finite.all()):
        raise ModelLoadError(
            "the model produces numbers that are not finite; its weights are damaged or too large "
            "for their dtype: fetch it again or set another dtype"
        )
    values: list[float] = (-scores.logprobs.clamp(min=LEAST_LOGPROB)).tolist()
    return values


def _compared(logits: Tensor, theirs: Tensor, targets: Tensor) -> Iterator[Comparison]:
    divergences = divergence(logits, theirs).tolist()
    agrees = (logits.argmax(-1) == theirs.argmax(-1)).tolist()
    return map(Comparison, _surprises(theirs, targets), divergences, agrees)


def divergence(logits: Tensor, original: Tensor) -> Tensor:
    """The Kullback-Leibler divergence of each row's distribution from the original's, in nats.

    Args:
        logits, original: [R, V] fp32.

    Returns:
        The mean [R] of ln p − ln q, where p is the original's distribution and q the other one.

    Source: Kullback and Leibler 1951, doi:10.1214/aoms/1177729694.
    """
    ln_q, ln_p = logits.log_softmax(-1), original.log_softmax(-1)
    return kl_div(ln_q, ln_p, reduction="none", log_target=True).sum(-1)
