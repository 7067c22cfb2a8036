"""What `score_tokens` answers."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """R rows, on the logits' device; n alternatives each."""

    logprobs: Tensor
    """[R] fp32."""
    ranks: Tensor
    """[R] int64: 1 + the number of greater logits."""
    top_ids: Tensor
    """[R, n] int64, the likeliest first; valid ids in any case."""
    top_logprobs: Tensor
    """[R, n] fp32."""
    entropies: Tensor
    """[R] fp32, in nats: what a token of the row's distribution tells on average, -log p."""
    varentropies: Tensor
    """[R] fp32, in squared nats: the variance of that."""
    is_finite: Tensor
    """[R] bool: the logits are numbers or -infinity, and not all the latter."""
