"""Log-probabilities for clients: of given tokens and of the best alternatives."""

from kernels import _triton
from kernels.registry import every_call, op
from kernels.score_tokens import cases, composed, cpu, reference
from kernels.score_tokens.token_scores import TokenScores

__all__ = ["TokenScores", "score_tokens"]

score_tokens = op(cases)(reference.score_tokens)
score_tokens.implementation("composed", supports=every_call)(composed.score_tokens)
score_tokens.implementation("cpu", supports=cpu.supports)(cpu.score_tokens)
if _triton.AVAILABLE:
    from kernels.score_tokens import triton

    score_tokens.implementation("triton", supports=triton.supports)(triton.score_tokens)
