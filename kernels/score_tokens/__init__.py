"""Log-probabilities for clients: of given tokens and of the best alternatives."""

from torch import Tensor

from kernels import _triton
from kernels.registry import every_call, op
from kernels.score_tokens import cases, composed, cpu, reference
from kernels.score_tokens.token_scores import TokenScores

__all__ = ["TokenScores", "score_tokens"]


@op(cases)
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
    return reference.score_tokens(logits, token_ids, num_top)


score_tokens.implementation("composed", supports=every_call)(composed.score_tokens)
score_tokens.implementation("cpu", supports=cpu.supports)(cpu.score_tokens)
if _triton.AVAILABLE:
    from kernels.score_tokens import triton

    score_tokens.implementation("triton", supports=triton.supports)(triton.score_tokens)
