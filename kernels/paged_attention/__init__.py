"""Attention over a paged KV cache, for prompt chunks and single decoded tokens alike."""

from torch import Tensor

from kernels import _triton
from kernels.paged_attention import cases, composed, cpu, reference
from kernels.paged_attention.paged_batch import PagedBatch
from kernels.registry import op

__all__ = ["PagedBatch", "paged_attention"]


@op(cases)
def paged_attention(
    q: Tensor,
    kv_cache: Tensor,
    batch: PagedBatch,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    kv_scales: Tensor | None = None,
    sinks: Tensor | None = None,
    aligned: bool = False,
) -> Tensor:
    """Compute causal attention of each new token over its sequence's cached keys and values.

    The keys and values of the new tokens themselves are in the cache already (`rope_store_kv`). A
    sequence's queries are the last ones of its context: query i of Q is at position `context_len -
    Q + i` and sees the keys at positions up to its own, or further ones (`PagedBatch.key_ends`).

    Args:
        q: [T, H, D], fp32, bf16 or fp16; rows may be strided. Heads h·H/K .. share key head h.
        kv_cache: [N, 2, K, S, D], one layer, or [N, 1, K, S, D] if the values are the keys
            themselves; blocks may be strided, the rest is contiguous. q's dtype, or int8 or
            float8_e4m3fn with `kv_scales`. Slots past a context's end, in a block
            that belongs to it, get weight zero and must hold finite numbers.
        batch: the rows of each sequence and the places of its blocks.
        scale: factor of the scores, usually D**-0.5.
        window: positions that each query looks back at, its own included; None for all.
        soft_cap: c > 0 bends each scaled score x to c·tanh(x / c), before hidden keys are left out
            (Gemma 2); None leaves scores unchanged.
        kv_scales: [N, 2 or 1, K, S] fp32, the factor of the key or value in each slot and head;
            finite wherever the cache must be. Blocks may be strided, the rest is contiguous.
        sinks: [H] fp32, contiguous: for each query head, the score of one more key that every
            query sees and whose value is 0 (GPT-OSS). `scale` and `soft_cap` do not apply to it.
        aligned: whether windows begin at multiples of `window`, which is then not None, and do not
            move with the query: it looks back to the last such position (Llama 4).

    Returns:
        [T, H·D], contiguous, q's dtype. Scores and weights in fp32.

    Papers: PagedAttention, Kwon et al. 2023, arXiv:2309.06180; grouped-query attention, Ainslie et
    al. 2023, arXiv:2305.13245; soft-capping, Gemma 2, 2024, arXiv:2408.00118; sinks, OpenAI 2025,
    arXiv:2508.10925; keys that are the values, DeepSeek-AI 2024, arXiv:2405.04434.
    """
    return reference.paged_attention(
        q,
        kv_cache,
        batch,
        scale=scale,
        window=window,
        soft_cap=soft_cap,
        kv_scales=kv_scales,
        sinks=sinks,
        aligned=aligned,
    )


paged_attention.implementation("composed", supports=composed.supports)(composed.paged_attention)
paged_attention.implementation("cpu", supports=cpu.supports)(cpu.paged_attention)
if _triton.AVAILABLE:
    from kernels.paged_attention import triton

    paged_attention.implementation("triton", supports=triton.supports)(triton.paged_attention)
