"""Rows divided over threads, in C++."""

import functools

import torch
from torch import Tensor

from kernels import native
from kernels.score_tokens.token_scores import TokenScores
from kernels.shared.logit_rows import contiguous_rows

MAX_TOP = 256
"""The most alternatives, up to which a sorted list of the likeliest tokens is worthwhile."""


def supports(logits: Tensor, token_ids: Tensor, num_top: int) -> bool:
    """Supports CPU logits and few alternatives."""
    few = min(num_top, logits.shape[1]) <= MAX_TOP
    return few and logits.is_cpu and native.library() is not None


def score_tokens(logits: Tensor, token_ids: Tensor, num_top: int) -> TokenScores:
    """See `kernels.score_tokens`."""
    logits, token_ids = contiguous_rows(logits), token_ids.contiguous()
    num_rows, num_tokens = logits.shape
    num_top = min(num_top, num_tokens)
    scores = TokenScores(
        logprobs=torch.empty(num_rows),
        ranks=torch.empty(num_rows, dtype=torch.int64),
        top_ids=torch.empty(num_rows, num_top, dtype=torch.int64),
        top_logprobs=torch.empty(num_rows, num_top),
        entropies=torch.empty(num_rows),
        varentropies=torch.empty(num_rows),
        is_finite=torch.empty(num_rows, dtype=torch.bool),
    )
    _function()(
        native.DTYPES[logits.dtype],
        logits.data_ptr(),
        logits.stride(0),
        token_ids.data_ptr(),
        num_top,
        scores.logprobs.data_ptr(),
        scores.ranks.data_ptr(),
        scores.top_ids.data_ptr(),
        scores.top_logprobs.data_ptr(),
        scores.entropies.data_ptr(),
        scores.varentropies.data_ptr(),
        scores.is_finite.data_ptr(),
        num_rows,
        num_tokens,
    )
    return scores


@functools.cache
def _function() -> native.Function:
    return native.function("tandem_score_tokens", "ipipipppppppii")
