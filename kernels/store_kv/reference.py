"""The definition: one token after the other."""

from torch import Tensor


def store_kv(kv: Tensor, kv_cache: Tensor, slot_mapping: tuple[Tensor, Tensor]) -> None:
    """See `kernels.store_kv`."""
    block_ids, slots = slot_mapping[0].tolist(), slot_mapping[1].tolist()
    for token, (block_id, slot) in enumerate(zip(block_ids, slots, strict=True)):
        kv_cache[block_id, :, :, slot] = kv[token]
