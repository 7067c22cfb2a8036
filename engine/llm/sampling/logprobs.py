"""The log-probabilities that clients see: those of the unmodified logits, before penalties and
temperature.

`kernels.score_tokens` computes them; here they become what an event holds.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from engine.contract.generate import TokenLogprob
from engine.errors import InternalError
from kernels import score_tokens
from kernels.shared.transfer import HostCopy, to_device

LEAST_LOGPROB = -9999.0
"""The value that stands for probability zero, as with OpenAI: JSON has no infinity."""
_ROWS_PER_CHUNK = 32
"""The number of rows scored at a time, which bounds the memory that scoring a long prompt takes."""


def token_logprobs(
    logits: Tensor, targets: Sequence[int], num_top: Sequence[int]
) -> list[TokenLogprob]:
    """Score one token per row.

    Args:
        logits: shape [R, V], any float dtype.
        targets: R token ids.
        num_top: how many alternatives each row reports; more than V stands for all.

    Raises:
        InternalError: a row holds NaN or infinity, or only −infinity.
    """
    on_device = to_device([np.array(targets, dtype=np.int64)], logits.device)[0]
    scores = launch_logprobs(logits, on_device, num_top).collect()
    fine = [score for score in scores if score is not None]
    if len(fine) < len(scores):
        raise InternalError("the model gave non-finite logits, so tokens cannot be scored")
    return fine


def launch_logprobs(logits: Tensor, targets: Tensor, num_top: Sequence[int]) -> "LaunchedScores":
    """Start to score tokens that are on the device, [R] int64, without waiting for it."""
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

    def collect(self) -> list[TokenLogprob | None]:
        """Wait for the scores, one per row; None where the logits are not finite."""
        return [score for chunk in self._chunks for score in chunk.collect()]


class _Chunk:
    """The scores of rows that were launched together, on their way to the host."""

    def __init__(self, logits: Tensor, targets: Tensor, num_top: Sequence[int]) -> None:
        self._num_top = num_top
        scores = score_tokens(logits, targets, max(num_top))
        self._targets = HostCopy(targets)
        self._own = HostCopy(scores.logprobs.clamp(min=LEAST_LOGPROB))
        self._ranks = HostCopy(scores.ranks)
        self._finite = HostCopy(scores.is_finite)
        self._entropies = HostCopy(scores.entropies)
        self._varentropies = HostCopy(scores.varentropies)
        self._ids = HostCopy(scores.top_ids)
        self._tops = HostCopy(scores.top_logprobs.clamp(min=LEAST_LOGPROB))

    def collect(self) -> list[TokenLogprob | None]:
        return [
            TokenLogprob(
                token_id, logprob, rank, row_ids[:num], row_tops[:num], entropy, varentropy
            )
            if fine
            else None
            for token_id, logprob, rank, row_ids, row_tops, num, entropy, varentropy, fine in zip(
                self._targets.wait().tolist(),
                self._own.wait().tolist(),
                self._ranks.wait().tolist(),
                self._ids.wait().tolist(),
                self._tops.wait().tolist(),
                self._num_top,
                self._entropies.wait().tolist(),
                self._varentropies.wait().tolist(),
                self._finite.wait().tolist(),
                strict=True,
            )
        ]
