"""The memory behind KV blocks. Which block belongs to whom is the scheduler's business."""

import contextlib
import ctypes
import math
import mmap
import threading
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.kv_numbers import SCALE_BYTES

COMMITTED_AHEAD_BYTES = 256 << 20
"""Memory of the lowest blocks that is committed before it is written, on a CPU."""
_MADV_POPULATE_WRITE = 23


class KvStorage:
    """All layers' keys and values: one tensor [N, L, 2, K, S, D], a block's bytes side by side,
    behind them in a packed cache its scales [L, 2, K, S].

    L are the layers of a group (`engine.kv_layout`), or of the largest one. A block is thus one run
    of memory: copying it (or moving it elsewhere) is one copy, and on a CPU memory is committed
    block by block as blocks are first written, whatever their order. Within a block each head's
    keys are one run of S·D elements, which is what a core reads at a time.

    Invariant: slots that nobody wrote since their block got its owner hold finite numbers, because
    attention multiplies them by zero; `clear` sees to it.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        layer_groups: Sequence[Sequence[int]],
        num_kv_heads: int,
        block_size: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """
        Args:
            layer_groups: the layers of each group; every layer is in one.
            dtype: of the numbers; int8 and float8_e4m3fn have a scale for each slot and head.
        """
        layers_per_block = max(map(len, layer_groups))
        shape = (layers_per_block, 2, num_kv_heads, block_size, head_dim)
        num_numbers, num_scales = math.prod(shape), math.prod(shape[:-1])
        scales: Sequence[Tensor | None]
        if dtype.itemsize == 1:
            block = num_numbers + num_scales * SCALE_BYTES
            self._pool = _allocate((num_blocks, block), torch.uint8, device)
            numbers = self._pool[:, :num_numbers].view(dtype).view(num_blocks, *shape)
            behind = self._pool[:, num_numbers:].view(torch.float32)
            scales = behind.view(num_blocks, *shape[:-1]).unbind(1)
        else:
            self._pool = numbers = _allocate((num_blocks, *shape), dtype, device)
            scales = [None] * layers_per_block
        self._block_bytes = self._pool[:1].nbytes
        self._written = np.zeros(num_blocks, dtype=np.bool_)
        self._always_committed = device.type != "cpu"
        shares = numbers.unbind(1)
        places = {
            layer: (group, at)
            for group, layers in enumerate(layer_groups)
            for at, layer in enumerate(layers)
        }
        self.group_of_layer = [places[layer][0] for layer in range(len(places))]
        self.layers: list[Tensor] = [shares[places[layer][1]] for layer in range(len(places))]
        """Per layer [N, 2, K, S, D]: what the kernels take as `kv_cache`. Layers of different
        groups may share it: their blocks are different ones."""
        self.scales = [scales[places[layer][1]] for layer in range(len(places))]
        """Per layer [N, 2, K, S] fp32: what the kernels take as `kv_scales`; None of a cache that
        is not packed."""

    @property
    def bytes_committed(self) -> int:
        """Physical memory of the blocks that were ever written (on a GPU: all)."""
        num = len(self._written) if self._always_committed else np.count_nonzero(self._written)
        return int(num) * self._block_bytes

    def commit_ahead(self) -> threading.Thread | None:
        """Have the system prepare the memory that the first requests will write, in a thread.

        A first write waits for pages to be found and cleared, in virtual machines often for longer
        than a step takes. Where the system cannot do it (Linux before 5.14), steps wait.
        """
        if self._always_committed:
            return None
        num_bytes = min(COMMITTED_AHEAD_BYTES, self._pool.nbytes)
        libc, address = ctypes.CDLL(None), ctypes.c_void_p(self._pool.data_ptr())
        arguments = (address, ctypes.c_size_t(num_bytes), _MADV_POPULATE_WRITE)
        thread = threading.Thread(target=libc.madvise, args=arguments, daemon=True)
        thread.start()
        return thread

    def will_write(self, block_ids: NDArray[np.int64]) -> None:
        """Count the blocks that this step writes to."""
        self._written[block_ids] = True

    def clear(self, block_ids: Sequence[int]) -> None:
        """Make blocks that get a new owner free of what the last one left. Untouched ones are."""
        for block_id in block_ids:
            if self._written[block_id]:
                self._pool[block_id].zero_()

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, (source, destination), in this order."""
        for source, destination in pairs:
            self._pool[destination].copy_(self._pool[source])
            self._written[destination] = True


def _allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros. On a CPU fresh anonymous pages, which are zero without being touched; an allocator
    might hand out used memory, and zeroing would commit all of it."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = max(1, math.prod(shape) * dtype.itemsize)
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # A layer's share of a block is a few small pages, far from the next block's: with 4 KiB pages
    # every step would miss the TLB for each of them. Memory is then committed 2 MiB at a time.
    with contextlib.suppress(AttributeError, OSError):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype, count=math.prod(shape)).view(shape)
