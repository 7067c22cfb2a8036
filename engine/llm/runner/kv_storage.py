"""The memory behind KV blocks. The scheduler decides which block belongs to whom."""

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

from engine.contract.kv_layout import LayerGroup
from engine.contract.kv_numbers import SCALE_BYTES
from engine.runtime.huge_pages import HUGE_PAGE_BYTES

COMMITTED_AHEAD_BYTES = 32 << 20
"""The memory behind the highest written block that is committed on a CPU before it is written."""
_MADV_POPULATE_WRITE = 23


class KvStorage:
    """The keys and values of all layers in one tensor [N, block]. A block holds those of one group
    of layers (`engine.contract.kv_layout`), [L, C, K, S, D]; in a packed cache their scales
    [L, C, K, S] follow them. L is the number of the group's layers, C, K and D are its shape, and a
    smaller group leaves the block's end unused.

    A block is one run of memory: it is copied or moved at once, and on a CPU memory is committed
    block by block, in the order in which blocks are first written. Within a block each head's keys
    are one run of S·D elements, which a core reads at a time.

    Invariant: slots that nobody wrote since their block got its owner hold finite numbers, because
    attention multiplies them by zero. `clear` ensures this.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        layer_groups: Sequence[LayerGroup],
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Allocate the memory.

        Args:
            layer_groups: layers without keys and values are in none. If all groups are empty,
                blocks hold nothing.
            dtype: the numbers' dtype; int8 and float8_e4m3fn have a scale for each slot and head.
        """
        is_packed = dtype.itemsize == 1 and any(group.layers for group in layer_groups)
        shapes = [
            (len(group.layers), parts, num_heads, block_size, head_dim)
            for group in layer_groups
            for num_heads, head_dim, parts in [group.shape]
        ]
        per_head = SCALE_BYTES if is_packed else 0
        block = max(math.prod(shape[:-1]) * (shape[-1] + per_head) for shape in shapes)
        self._pool = _allocate((num_blocks, block), torch.uint8 if is_packed else dtype, device)
        self._block_bytes = self._pool[:1].nbytes
        self._written = np.zeros(num_blocks, dtype=np.bool_)
        self._always_committed = device.type != "cpu"
        # Copies for a disk need not wait for steps in flight.
        self._beside = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._ahead_bytes = 0
        """The end of the memory that was committed ahead."""
        places: dict[int, tuple[int, Tensor, Tensor | None]] = {}
        for number, (group, shape) in enumerate(zip(layer_groups, shapes, strict=True)):
            size, num_scales = math.prod(shape), math.prod(shape[:-1])
            shares = self._pool[:, :size].view(dtype).view(num_blocks, *shape).unbind(1)
            scales: Sequence[Tensor | None] = [None] * len(shares)
            if is_packed:
                behind = self._pool[:, size : size + num_scales * SCALE_BYTES].view(torch.float32)
                scales = behind.view(num_blocks, *shape[:-1]).unbind(1)
            entries = zip(group.layers, shares, scales, strict=True)
            places |= {layer: (number, share, scale) for layer, share, scale in entries}
        # A layer without keys and values has entries that nobody reads.
        of_layer = []
        if places:
            anyone = next(iter(places.values()))
            of_layer = [places.get(layer, anyone) for layer in range(1 + max(places))]
        self.group_of_layer = [group for group, _, _ in of_layer]
        self.layers = [share for _, share, _ in of_layer]
        """One view per layer, [N, C, K, S, D], which the kernels take as `kv_cache`. Layers of
        different groups may share memory: their blocks differ."""
        self.scales = [scales for _, _, scales in of_layer]
        """One view per layer, [N, C, K, S] fp32, which the kernels take as `kv_scales`; None if the
        cache is not packed."""

    @property
    def bytes_committed(self) -> int:
        """The physical memory of all blocks that were ever written; on a GPU, of all blocks."""
        num = len(self._written) if self._always_committed else np.count_nonzero(self._written)
        return int(num) * self._block_bytes

    def commit_ahead(self, block_ids: NDArray[np.int64]) -> threading.Thread | None:
        """Have a thread prepare the memory that steps will write after these blocks, if less than
        half of `COMMITTED_AHEAD_BYTES` is left. New blocks are handed out in the order of their
        numbers.

        A first write waits until pages are found and cleared, in virtual machines often for longer
        than a step. Where the system cannot prepare memory (Linux before 5.14), steps wait.
        """
        if self._always_committed or not block_ids.size:
            return None
        written_bytes = (1 + int(block_ids.max())) * self._block_bytes
        if written_bytes + COMMITTED_AHEAD_BYTES // 2 <= self._ahead_bytes:
            return None
        first = written_bytes // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
        start, end = max(self._ahead_bytes, first), first + COMMITTED_AHEAD_BYTES
        self._ahead_bytes = end
        num_bytes = min(end, self._pool.nbytes) - start
        if num_bytes <= 0:
            return None
        libc, address = ctypes.CDLL(None), ctypes.c_void_p(self._pool.data_ptr() + start)
        arguments = (address, ctypes.c_size_t(num_bytes), _MADV_POPULATE_WRITE)
        thread = threading.Thread(target=libc.madvise, args=arguments, daemon=True)
        thread.start()
        return thread

    def will_write(self, block_ids: NDArray[np.int64]) -> None:
        """Count the blocks that this step writes to."""
        self._written[block_ids] = True

    def clear(self, block_ids: Sequence[int]) -> None:
        """Clear blocks that get a new owner. Blocks that were never written are clear."""
        for block_id in block_ids:
            if self._written[block_id]:
                self._pool[block_id].zero_()

    @property
    def block_bytes(self) -> int:
        """The bytes of a block."""
        return self._block_bytes

    def copy_out(self, block_id: int) -> memoryview:
        """Copy the contents of a block that no step writes to, without waiting for launched
        steps."""
        block = self._pool[block_id]
        if block.is_cuda:
            with torch.cuda.stream(self._beside):
                block = block.cpu()
        return memoryview(block.view(torch.uint8).numpy().tobytes())

    def copy_in(self, block_id: int, contents: memoryview) -> None:
        """Set the contents of a block, after all launched steps."""
        self.commit_ahead(np.array([block_id]))
        numbers = torch.frombuffer(contents, dtype=torch.uint8)
        self._pool[block_id].view(torch.uint8).copy_(numbers)
        self._written[block_id] = True

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, (source, destination), in this order."""
        for source, destination in pairs:
            self._pool[destination].copy_(self._pool[source])
            self._written[destination] = True


def _allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Allocate zeros. On a CPU these are fresh anonymous pages, which are zero without being
    touched: an allocator might reuse memory, and zeroing would commit all of it."""
    if device.type != "cpu" or 0 in shape:
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = max(1, math.prod(shape) * dtype.itemsize)
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # A layer's share of a block is a few small pages, far from those of the next block. With 4 KiB
    # pages every step would miss the TLB for each. Huge pages are committed 2 MiB at a time.
    with contextlib.suppress(AttributeError, OSError):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype, count=math.prod(shape)).view(shape)
