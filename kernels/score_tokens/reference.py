"""The definition, by sorting whole rows."""

import torch
from torch import Tensor

from kernels.score_tokens.token_scores import TokenScores


def score_tokens(logits: Tensor, token_ids: Tensor, num_top: int) -> TokenScores:
    """Compute the log-softmax of one token per row, its rank, the likeliest tokens, and the row's
    entropy.

    Ranks and alternatives follow the logits, so that no rounding of a logarithm decides: equal
    logits have equal ranks, and of equals the lower id comes first. The host does not wait for the
    device.

    Args:
        logits: [R, V], any float dtype, any strides. Not changed.
        token_ids: [R] int64, on logits' device.
        num_top: alternatives per row; more than V means V.

    Returns:
        fp32 numbers; those of a row with NaN, +infinity or only -infinity are meaningless.
    """
    values = logits.float()
    exact = values.double().log_softmax(-1)  # sums of 150 000 terms
    probabilities, surprises = exact.exp(), -exact.clamp(min=torch.finfo(torch.float64).min)
    entropies = (probabilities * surprises).sum(-1)
    spreads = (surprises - entropies.unsqueeze(1)).square()
    logprobs = exact.float()
    target = token_ids.unsqueeze(1)
    # + 0.0 makes both zeros equal; NaN would come first, but its rows are meaningless anyway.
    order = (values + 0.0).sort(dim=-1, descending=True, stable=True).indices
    top_ids = order[:, : min(num_top, logits.shape[1])].contiguous()
    return TokenScores(
        logprobs=logprobs.gather(1, target).squeeze(1),
        ranks=(values > values.gather(1, target)).sum(-1) + 1,
        top_ids=top_ids,
        top_logprobs=logprobs.gather(1, top_ids),
        entropies=entropies.float(),
        varentropies=torch.where(probabilities > 0, probabilities * spreads, 0).sum(-1).float(),
        is_finite=torch.isfinite(values.amax(-1)),
    )
