"""The results of `score_tokens`."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """The scores of R rows, on the logits' device; n alternatives each."""

    logprobs: Tensor
    """[R] fp32."""
    ranks: Tensor
    """[R] int64: 1 + the number of greater logits."""
    top_ids: Tensor
    """[R, n] int64, the likeliest first; valid ids in any case."""
    top_logprobs: Tensor
    """[R, n] fp32."""
    entropies: Tensor
    """[R] fp32, the entropy in nats: the mean of -log p over the row's distribution."""
    varentropies: Tensor
    """[R] fp32, the variance of -log p in squared nats."""
    is_finite: Tensor
    """[R] bool: whether the logits are numbers or -infinity, and not all the latter."""
