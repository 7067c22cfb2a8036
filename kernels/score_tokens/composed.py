"""PyTorch without a sort of whole rows."""

import torch
from torch import Tensor

from kernels.score_tokens.ranking import first_ids
from kernels.score_tokens.token_scores import TokenScores

LEAST_DISTANCE = -87.0
"""The largest distance of a logit from the greatest; logits farther away have no share in a
mean."""


def score_tokens(logits: Tensor, token_ids: Tensor, num_top: int) -> TokenScores:
    """See `kernels.score_tokens`."""
    values = logits.float()
    peaks = values.amax(-1, keepdim=True)
    distances = (values - peaks).clamp_(min=LEAST_DISTANCE)
    exponentials = (values - peaks).exp_()
    sums = exponentials.sum(-1, keepdim=True)
    log_sums = sums.log()
    means = (exponentials * distances).sum(-1, keepdim=True) / sums
    squares = (exponentials * distances.square_()).sum(-1, keepdim=True) / sums
    own = values.gather(1, token_ids.unsqueeze(1))
    num_top = min(num_top, values.shape[1])
    top_ids = first_ids(values, num_top) if num_top else token_ids.new_empty(len(token_ids), 0)
    return TokenScores(
        logprobs=(own - peaks - log_sums).squeeze(1),
        ranks=(values > own).sum(-1) + 1,
        top_ids=top_ids,
        top_logprobs=values.gather(1, top_ids) - peaks - log_sums,
        entropies=(log_sums - means).squeeze(1),
        varentropies=(squares - means.square()).clamp(min=0).squeeze(1),
        is_finite=torch.isfinite(peaks).squeeze(1),
    )
