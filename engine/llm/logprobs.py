"""Log-probabilities that clients see: of the unmodified logits, before penalties and temperature.

Values are fp32 log-softmax. Alternatives and ranks come from the same values, alternatives in the
order of `engine.llm.ranking`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engine.errors import InternalError
from engine.llm.ranking import top_ids
from engine.types import TokenLogprob
from kernels.transfer import HostCopy, to_device

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
    on_device = to_device([np.array(targets, dtype=np.int64)], logits.device)[0]
    return launch_logprobs(logits, on_device, num_top).collect()


def launch_logprobs(logits: Tensor, targets: Tensor, num_top: Sequence[int]) -> "LaunchedScores":
    """The same for tokens that are on the device: [R] int64. Does not wait for it."""
    return LaunchedScores(
        [
            _Chunk(logits[at : at + _ROWS_PER_CHUNK], targets[at : at + _ROWS_PER_CHUNK], some)
            for at in range(0, len(num_top), _ROWS_PER_CHUNK)
            if (some := num_top[at : at + _ROWS_PER_CHUNK])
        ]
    )


class LaunchedScores:
    """Scores on their way to the host."""

    def __init__(self, chunks: "Sequence[_Chunk]") -> None:
        self._chunks = chunks

    def collect(self) -> list[TokenLogprob]:
        """One per row. Raises as `token_logprobs` does."""
        return [score for chunk in self._chunks for score in chunk.collect()]


class _Chunk:
    """Some rows, whose [R, V] log-probabilities exist only while this is made."""

    def __init__(self, logits: Tensor, targets: Tensor, num_top: Sequence[int]) -> None:
        self._num_top = num_top
        values = logits.to(torch.float32).log_softmax(-1)
        target = targets.unsqueeze(1)
        own = values.gather(1, target)
        most = min(max(num_top), logits.shape[1])
        ids = top_ids(values, most) if most else target[:, :0]
        self._targets = HostCopy(targets)
        self._own = HostCopy(own.squeeze(1).clamp(min=LEAST_LOGPROB))
        self._ranks = HostCopy((values > own).sum(-1) + 1)
        self._finite = HostCopy(values.amax(-1).isfinite().all())
        self._ids = HostCopy(ids)
        self._tops = HostCopy(values.gather(1, ids).clamp_(min=LEAST_LOGPROB))

    def collect(self) -> list[TokenLogprob]:
        if not bool(self._finite.wait()):
            raise InternalError("the model gave non-finite logits, so tokens cannot be scored")
        return [
            TokenLogprob(token_id, logprob, rank, row_ids[:num], row_tops[:num])
            for token_id, logprob, rank, row_ids, row_tops, num in zip(
                self._targets.wait().tolist(),
                self._own.wait().tolist(),
                self._ranks.wait().tolist(),
                self._ids.wait().tolist(),
                self._tops.wait().tolist(),
                self._num_top,
                strict=True,
            )
        ]
