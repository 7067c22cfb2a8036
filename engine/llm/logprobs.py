"""Log-probabilities that clients see: of the unmodified logits, before penalties and temperature.

Values are fp32 log-softmax. Alternatives and ranks come from the same values, alternatives in the
order of `engine.llm.ranking`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.errors import InternalError
from engine.llm.ranking import top_ids
from engine.types import TokenLogprob

LEAST_LOGPROB = -9999.0
"""Stands for probability zero, as with OpenAI: JSON has no infinity."""
_ROWS_PER_CHUNK = 32
"""Bounds the scratch memory when a long prompt is scored."""


def token_logprobs(
    logits: Tensor, targets: Sequence[int], num_top: Sequence[int]
) -> list[TokenLogprob]:
    """Score one token per row.

    Args:
        logits: [R, V] of any float dtype.
        targets: R token ids.
        num_top: how many alternatives each row reports; more than V means all.

    Raises:
        InternalError: a row holds NaN or infinity, or only −infinity.
    """
    scored: list[TokenLogprob] = []
    for start in range(0, len(targets), _ROWS_PER_CHUNK):
        chunk = slice(start, start + _ROWS_PER_CHUNK)
        scored += _score_chunk(logits[chunk], targets[chunk], num_top[chunk])
    return scored


def _score_chunk(
    logits: Tensor, targets: Sequence[int], num_top: Sequence[int]
) -> list[TokenLogprob]:
    values = logits.to(torch.float32).log_softmax(-1)
    target = torch.tensor(targets, device=logits.device).unsqueeze(1)
    own = values.gather(1, target)
    ranks = (values > own).sum(-1) + 1
    finite = values.amax(-1).isfinite()
    most = min(max(num_top), logits.shape[1])
    ids = top_ids(values, most) if most else target[:, :0]
    tops = values.gather(1, ids).clamp_(min=LEAST_LOGPROB).tolist()
    if not bool(finite.all()):
        raise InternalError("the model gave non-finite logits, so tokens cannot be scored")
    return [
        TokenLogprob(token_id, logprob, rank, row_ids[:num], row_tops[:num])
        for token_id, logprob, rank, row_ids, row_tops, num in zip(
            targets,
            own.squeeze(1).clamp_(min=LEAST_LOGPROB).tolist(),
            ranks.tolist(),
            ids.tolist(),
            tops,
            num_top,
            strict=True,
        )
    ]
