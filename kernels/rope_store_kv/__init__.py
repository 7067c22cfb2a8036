"""Rotary embedding of a step's queries and keys, and storage of its keys and values in the paged
cache."""

from torch import Tensor

from kernels import _triton
from kernels.registry import every_call, op
from kernels.rope_store_kv import cases, composed, cpu, reference


@op(cases)
def rope_store_kv(
    heads: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    kv_cache: Tensor,
    slot_mapping: tuple[Tensor, Tensor],
    *,
    num_heads: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    kv_scales: Tensor | None = None,
) -> None:
    """Rotate the query heads in place; rotate the key heads and store them with the values.

    Each query and key head's pairs (i, i + R/2) turn by the angles of its token's position:

        x[:R/2], x[R/2:R]  ←  x1·cos - x2·sin,  x2·cos + x1·sin

    Args:
        heads: [T, H + 2·K, D], each token's query, key and value heads, any float dtype; the last
            dimension is contiguous, the others may be strided. Mutated: the first H heads become
            the rotated queries; what the others hold afterwards is unspecified.
        positions: [T] int64, below P.
        cos_sin: [P, R] fp32, contiguous: a position's R/2 cosines, then its R/2 sines. R is even
            and at most D; elements from R on are not rotated.
        kv_cache: [N, 2, K, S, D], one layer's keys and values; blocks may be strided (the pool
            holds all layers of a block together), the rest is contiguous. heads' dtype, or int8 or
            float8_e4m3fn with `kv_scales`. Mutated in the rows' slots only.
        slot_mapping: block ids and slots within the block, each [T] int64. Of rows that share a
            slot, as padding may, any one is stored.
        num_heads: H.
        q_norm, k_norm: [D], fp32 or heads' dtype, both or none: weights of RMS norms of the heads
            before their rotation (Qwen3).
        eps: added to the mean square by these norms.
        kv_scales: [N, 2, K, S] fp32, blocks may be strided. Mutated: the largest magnitude of each
            stored head, divided by 127 (int8) or 448 (float8); the cache holds `value / scale`,
            rounded to the nearest, and zeros where the scale is 0.

    Computed in fp32, rounded once. A row's result depends on nothing but the row.

    Papers: RoFormer, Su et al. 2021, arXiv:2104.09864, equation 34, with the halves instead of
    neighbours paired, as in Hugging Face checkpoints; PagedAttention, Kwon et al. 2023,
    arXiv:2309.06180, section 4.
    """
    reference.rope_store_kv(
        heads,
        positions,
        cos_sin,
        kv_cache,
        slot_mapping,
        num_heads=num_heads,
        q_norm=q_norm,
        k_norm=k_norm,
        eps=eps,
        kv_scales=kv_scales,
    )


rope_store_kv.implementation("composed", supports=every_call)(composed.rope_store_kv)
rope_store_kv.implementation("cpu", supports=cpu.supports)(cpu.rope_store_kv)
if _triton.AVAILABLE:
    from kernels.rope_store_kv import triton

    rope_store_kv.implementation("triton", supports=triton.supports)(triton.rope_store_kv)
