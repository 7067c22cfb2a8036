"""Writing a step's keys and values into the paged cache."""

from torch import Tensor

from kernels.registry import op
from kernels.store_kv import cases, composed, cpu, reference


@op(cases)
def store_kv(kv: Tensor, kv_cache: Tensor, slot_mapping: tuple[Tensor, Tensor]) -> None:
    """Scatter this step's keys and values into their cache slots, in place.

    Args:
        kv: [T, 2, K, D], each row's key heads, then its value heads; cache's dtype. Rows may be
            strided: this is the tail of packed q, k, v.
        kv_cache: [N, 2, K, S, D], one layer's keys and values; blocks may be strided (the pool
            holds all layers of a block together), the rest is contiguous. Mutated.
        slot_mapping: block ids and slots within the block, each [T] int64. No slot twice.

    Paper: PagedAttention, Kwon et al. 2023, arXiv:2309.06180, section 4.
    Cost: one read and one write of 2·T·K·D elements; no host sync.
    """
    reference.store_kv(kv, kv_cache, slot_mapping)


store_kv.implementation("composed", supports=composed.supports)(composed.store_kv)
store_kv.implementation("cpu", supports=cpu.supports)(cpu.store_kv)
