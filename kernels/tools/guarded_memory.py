"""Memory that shows an op's errors: outputs left unwritten, writes past an end."""

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

GUARD_BYTES = 4096
"""Bytes on either side of a storage; a multiple of any alignment that a kernel may rely on."""
POISON = 0xFF
"""The value of each byte of a guard and of allocated memory: NaN in every float type, -1 as an
integer."""

_ALLOCATIONS = {
    torch.ops.aten.empty,
    torch.ops.aten.empty_like,
    torch.ops.aten.empty_strided,
    torch.ops.aten.new_empty,
    torch.ops.aten.new_empty_strided,
}
_COMPUTED = (torch.float32, torch.bfloat16, torch.float16)
"""Types that `copied` converts; narrower floats are storage, part of a contract."""

T = TypeVar("T")


@dataclasses.dataclass
class _Storage:
    whole: Tensor
    """The bytes, including the guards."""
    before: Tensor
    """A copy of the original contents."""
    outside: Tensor
    """Bytes that no view of the inputs covers."""


class GuardedMemory:
    """Copies of an op's inputs, and memory that the op allocates, all between guards."""

    def __init__(self) -> None:
        self._copies: dict[int, _Storage] = {}
        self._allocated: list[Tensor] = []

    def copied(self, value: T, dtype: torch.dtype | None = None) -> T:
        """Make a deep copy with the same strides and the same sharing; floats in `dtype`, if
        given."""
        return self._copied(value, dtype)  # type: ignore[no-any-return]

    @contextmanager
    def holding_allocations(self) -> Iterator[None]:
        """Poison and guard tensors that are allocated in this context."""
        with _Allocations(self):
            yield

    def damage(self, outputs: Iterable[Tensor]) -> str | None:
        """Describe the first forbidden write, or return None.

        Inputs may only change where they are (or share a storage with) one of the `outputs`, and
        there only in elements that the op was given.
        """
        written = {tensor.untyped_storage().data_ptr() for tensor in outputs}
        for storage in self._copies.values():
            changed = storage.whole != storage.before
            if storage.whole.untyped_storage().data_ptr() in written:
                changed &= storage.outside
            if bool(changed.any()):
                return f"byte {int(changed.nonzero()[0]) - GUARD_BYTES} of an input was changed"
        for whole in self._allocated:
            guards = torch.cat((whole[:GUARD_BYTES], whole[-GUARD_BYTES:]))
            if bool((guards != POISON).any()):
                return f"wrote beyond the {len(whole) - 2 * GUARD_BYTES} bytes of an output"
        return None

    def allocated(self, like: Tensor) -> Tensor:
        """Return poisoned memory with the layout of `like`."""
        size = like.untyped_storage().nbytes()
        whole = torch.full((size + 2 * GUARD_BYTES,), POISON, dtype=torch.uint8, device=like.device)
        self._allocated.append(whole)
        return _view(whole, like, like.dtype)

    def _copied(self, value: Any, dtype: torch.dtype | None) -> Any:
        if isinstance(value, Tensor):
            # An opaque layout (packed by oneDNN) has no bytes to look at.
            return self._copied_tensor(value, dtype) if value.layout is torch.strided else value
        if isinstance(value, tuple):
            return tuple(self._copied(item, dtype) for item in value)
        if isinstance(value, dict):
            return {key: self._copied(item, dtype) for key, item in value.items()}
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            copy = object.__new__(type(value))
            for field in dataclasses.fields(value):
                item = self._copied(getattr(value, field.name), dtype)
                object.__setattr__(copy, field.name, item)
            return copy
        return value

    def _copied_tensor(self, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
        if dtype is None or tensor.dtype not in _COMPUTED:
            dtype = tensor.dtype
        storage = tensor.untyped_storage()
        # An empty storage has no address to recognise it by.
        key = storage.data_ptr() or id(tensor)
        if key not in self._copies:
            flat = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            flat.set_(storage, 0, (storage.nbytes() // tensor.element_size(),), (1,))
            content = flat.to(dtype).view(torch.uint8)
            guard = torch.full((GUARD_BYTES,), POISON, dtype=torch.uint8, device=tensor.device)
            whole = torch.cat((guard, content, guard))
            outside = torch.ones_like(whole, dtype=torch.bool)
            self._copies[key] = _Storage(whole, whole.clone(), outside)
        found = self._copies[key]
        base = tensor if tensor._base is None else tensor._base
        copy = _view(found.whole, base, dtype)
        if base is not tensor:
            offset = tensor.storage_offset() + GUARD_BYTES // dtype.itemsize
            copy = copy.as_strided(tensor.shape, tensor.stride(), offset)
        covered = torch.zeros(len(found.whole) // dtype.itemsize, dtype=torch.bool)
        covered.as_strided(copy.shape, copy.stride(), copy.storage_offset()).fill_(True)
        covered = covered.repeat_interleave(dtype.itemsize).to(tensor.device)
        found.outside[: len(covered)] &= ~covered
        return copy


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode that gives guarded memory to every tensor that is allocated."""

    def __init__(self, memory: GuardedMemory) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._memory = memory

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in _ALLOCATIONS and result.layout is torch.strided:
            return self._memory.allocated(result)
        return result


def _view(whole: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor of its own, not a view, like `like`, with its bytes between the guards."""
    offset = like.storage_offset() + GUARD_BYTES // dtype.itemsize
    result = torch.empty(0, dtype=dtype, device=whole.device)
    return result.set_(whole.untyped_storage(), offset, like.shape, like.stride())
