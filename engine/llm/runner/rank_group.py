"""The process group in which a model's ranks exchange tensors: torch.distributed with gloo, on this
machine's loopback interface only."""

import os
import socket
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from engine.models.layers.parallel import TensorParallel


class RankGroup:
    """One rank's end of the group.

    Args:
        meeting_fd: an open file of the group's own, in which its ranks find each other.
        timeout_s: how long a rank may wait for the others.
    """

    def __init__(self, rank: int, size: int, meeting_fd: int, timeout_s: float) -> None:
        self.parallel = TensorParallel(rank, size, self._gather)
        self._meeting = f"file:///proc/self/fd/{meeting_fd}"
        self._timeout_s = timeout_s

    def meet(self) -> None:
        """Wait for the other ranks; needed before the first computation."""
        # By default gloo listens on the address of the machine's name.
        os.putenv("GLOO_SOCKET_IFNAME", socket.if_indextoname(1))
        dist.init_process_group(
            "gloo",
            init_method=self._meeting,
            rank=self.parallel.rank,
            world_size=self.parallel.size,
            timeout=timedelta(seconds=self._timeout_s),
        )

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        own = tensor.contiguous()
        found = [torch.empty_like(own) for _ in range(self.parallel.size)]
        dist.all_gather([one.view(torch.uint8) for one in found], own.view(torch.uint8))
        return found
