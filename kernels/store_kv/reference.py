"""The definition: one token after the other."""

from torch import Tensor


def store_kv(k: Tensor, v: Tensor, kv_cache: Tensor, slot_mapping: tuple[Tensor, Tensor]) -> None:
    """See `kernels.store_kv`."""
    block_ids, slots = slot_mapping[0].tolist(), slot_mapping[1].tolist()
    for token, (block_id, slot) in enumerate(zip(block_ids, slots, strict=True)):
        kv_cache[block_id, 0, :, slot] = k[token]
        kv_cache[block_id, 1, :, slot] = v[token]
