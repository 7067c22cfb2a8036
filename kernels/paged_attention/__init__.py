"""Attention over a paged KV cache, for prompt chunks and single decoded tokens alike."""

from torch import Tensor

from kernels.paged_attention import cases, composed, cpu, reference
from kernels.paged_attention.paged_batch import PagedBatch
from kernels.registry import op

__all__ = ["PagedBatch", "paged_attention"]


@op(cases)
def paged_attention(
    q: Tensor, kv_cache: Tensor, batch: PagedBatch, *, scale: float, window: int | None = None
) -> Tensor:
    """Causal attention of each new token over its sequence's cached keys and values.

    The keys and values of the new tokens themselves are in the cache already (`store_kv`). A
    sequence's queries are the last ones of its context: query i of Q sits at position
    `context_len - Q + i` and sees the keys at positions up to its own.

    Args:
        q: [T, H, D], cache's dtype; rows may be strided. Heads h·H/K .. share key head h.
        kv_cache: [N, 2, K, S, D], one layer; blocks may be strided, the rest is contiguous.
            Slots past a context's end, in a block that belongs to it, get weight zero and must
            hold finite numbers.
        batch: which rows belong to which sequence, and where its blocks are.
        scale: factor of the scores, usually D**-0.5.
        window: positions each query looks back at, itself included; None is all.

    Returns:
        [T, H·D], contiguous, q's dtype. Scores and weights in fp32.

    Papers: PagedAttention, Kwon et al. 2023, arXiv:2309.06180; grouped-query attention, Ainslie
    et al. 2023, arXiv:2305.13245.
    """
    return reference.paged_attention(q, kv_cache, batch, scale=scale, window=window)


paged_attention.implementation("composed", supports=composed.supports)(composed.paged_attention)
paged_attention.implementation("cpu", supports=cpu.supports)(cpu.paged_attention)
