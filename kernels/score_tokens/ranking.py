"""The order of tokens: by value, highest first; among equals the lower id first.

Greedy choice, top-k, top-p and the reported alternatives all take a prefix of this order, so ties
(common in bf16) resolve the same way everywhere and on every device. This is the order for PyTorch.
"""

import torch
from torch import Tensor

_ID_SPAN = 1 << 32
_BLOCK_SIZE = 32
"""Ids per block of `first_ids`: its maximum is cheap (vectorised), and k blocks stay few."""


def order_keys(values: Tensor, ids: Tensor) -> Tensor:
    """Return integers that sort as the order does, all different within a row.

    Args:
        values: [..., C] fp32, no NaN.
        ids: int64, broadcastable to it, below 2**32.

    Returns:
        [..., C] int64; a greater key comes earlier in the order.
    """
    bits = (values + 0.0).view(torch.int32)  # + 0.0 makes one zero of the two
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return ordered.to(torch.int64) * _ID_SPAN + (_ID_SPAN - 1 - ids)


def key_ids(keys: Tensor) -> Tensor:
    """Return the ids that went into `order_keys`."""
    return _ID_SPAN - 1 - (keys & (_ID_SPAN - 1))


def first_ids(values: Tensor, k: int) -> Tensor:
    """Return the first `k` ids of each row in the order.

        values   [ block 0 | block 1 | ... ]     32 neighbouring ids per block
        maxima   [    m0   |    m1   | ... ]     the k first of these, in the same order of
                                                 (value, block), hold the row's k first tokens

    A token outside those blocks has k blocks before its own, each with a maximum that precedes it:
    greater, or equal and at a lower id, since lower blocks hold lower ids.

    Args:
        values: [R, V] fp32. A row with NaN gets arbitrary valid ids.
        k: 1 .. V.

    Returns:
        [R, k] int64, in order.
    """
    num_ids = values.shape[1]
    if k * _BLOCK_SIZE * 2 > num_ids:
        return _top_of(values, torch.arange(num_ids, device=values.device), k)
    padding = -num_ids % _BLOCK_SIZE
    padded = torch.nn.functional.pad(values, (0, padding), value=-torch.inf) if padding else values
    blocks = padded.view(len(values), -1, _BLOCK_SIZE)
    block_numbers = torch.arange(blocks.shape[1], device=values.device)
    chosen = key_ids(order_keys(blocks.amax(-1), block_numbers).topk(k, sorted=False).values)
    offsets = torch.arange(_BLOCK_SIZE, device=values.device)
    ids = (chosen.unsqueeze(-1) * _BLOCK_SIZE + offsets).flatten(1)
    return _top_of(padded.gather(1, ids), ids, k)


def _top_of(values: Tensor, ids: Tensor, k: int) -> Tensor:
    return key_ids(order_keys(values, ids).topk(k).values)
