"""Computes the parts of a tensor side by side, each in a thread of its own."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


def joined_in_threads(function: Callable[[Tensor], Tensor], parts: Sequence[Tensor]) -> Tensor:
    """Apply a function of several operations to each part, in as many threads as PyTorch uses, and
    join the results.

    PyTorch's own threads meet after each operation. While other programs run, they wait there for
    a core longer than they compute. Threads that take whole parts never meet.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # new threads begin with this number
    try:
        if threads == 1 or len(parts) == 1:
            return torch.cat([function(part) for part in parts])
        with ThreadPoolExecutor(threads) as pool:
            return torch.cat(list(pool.map(function, parts)))
    finally:
        torch.set_num_threads(threads)
