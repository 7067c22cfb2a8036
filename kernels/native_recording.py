"""Computations on the CPU that are recorded, to be repeated without the Python between the calls.

A step calls a few hundred operations, each with some microseconds of Python: checks, memory, views.
Their calls of C++ are the same in every step with the same number of rows, if inputs and results
keep their addresses. So a recording is a list of calls, as a CUDA graph is one of launches.
"""

import contextlib
import functools
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map

from kernels import native
from kernels.noted_calls import joined

PROMPT_ROWS = 8
"""Steps with prompts are recorded for multiples of this number of rows."""
MOST_PROMPT_ROWS = 256
SMALLEST_BUFFER = 4096
"""Bytes of the smallest buffer; larger sizes are rounded up to powers of two, so that recordings
share buffers."""

_aten = torch.ops.aten
_ALLOCATIONS = (
    _aten.empty.memory_format,
    _aten.empty_like.default,
    _aten.empty_strided.default,
    _aten.new_empty.default,
)


class NotRecordable(RuntimeError):
    """A computation depends on numbers that may differ the next time, or needs too much memory."""


def refuse_recording(reason: str) -> None:
    """Refuse a recording of an operation whose intermediate results must not be kept.

    Raises:
        NotRecordable: this thread is recording.
    """
    if native.is_noting():
        raise NotRecordable(reason)


@dataclass(frozen=True, slots=True)
class NativeRecording:
    """Calls in order, and the tensor that the last of them fills."""

    calls: Sequence[Callable[[], object]]
    output: Tensor
    memory: "_Buffers"
    """The memory that the calls use, besides the inputs."""

    def replay(self) -> Tensor:
        """Compute again from the present contents of the inputs. The next replay reuses the
        result's memory."""
        for call in self.calls:
            call()
        return self.output


class NativeRecorder:
    """Records functions of tensors. All recordings use the same memory, so only one may run at a
    time."""

    is_cheap = True

    def __init__(self) -> None:
        self._buffers = _Buffers()

    def padded(self, num_rows: int) -> int:
        """Return the number of rows to record for this many: the same, since on a CPU each row
        costs time."""
        return num_rows

    def padded_with_prompts(self, num_rows: int) -> int | None:
        """Return one of a few numbers of rows, since each must be recorded; None for so many rows
        that Python hardly matters."""
        if num_rows > MOST_PROMPT_ROWS:
            return None
        return -(-num_rows // PROMPT_ROWS) * PROMPT_ROWS

    def record(self, run: Callable[[], Tensor]) -> NativeRecording:
        """Record a function, which is called once. It must be a fixed sequence of operations,
        whatever its inputs hold: those of C++ are noted instead of being computed, which is most of
        a step's time; PyTorch's are computed from the present contents of their inputs, and noted
        as well.

        Raises:
            NotRecordable: it reads numbers of a tensor, or calls an operation with several results.
        """
        with native.noting_calls() as calls, _Noting(self._buffers, calls):
            output = run()
        return NativeRecording(joined(calls), output, self._buffers)


@contextlib.contextmanager
def computed_once() -> Iterator[None]:
    """Run code that is needed only once, such as filling a table, without making it part of a
    recording."""
    with _disable_current_modes(), native.making_calls():
        yield


class _Buffers:
    """Memory for intermediate results, which is used again once nothing refers to it."""

    def __init__(self) -> None:
        self._free: dict[int, list[Tensor]] = defaultdict(list)
        self._made: dict[int, Tensor] = {}
        """All buffers, by address."""
        self.num_bytes = 0
        """Bytes of all buffers."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        num_bytes = dtype.itemsize
        for size in shape:
            num_bytes *= size
        rounded = max(SMALLEST_BUFFER, 1 << (num_bytes - 1).bit_length())
        free = self._free[rounded]
        if not free:
            free.append(torch.empty(rounded, dtype=torch.uint8))
            self._made[free[0].data_ptr()] = free[0]
            self.num_bytes += rounded
        buffer = free.pop()
        # A tensor keeps the array that it was made from alive, not its views: the array goes when
        # the last tensor that shares the memory goes.
        array = buffer.numpy()[:num_bytes]
        weakref.finalize(array, free.append, buffer).atexit = False
        return torch.from_numpy(array).view(dtype).view(tuple(shape))

    def borrowed(self, given: Any) -> Any:
        """Return a tensor over the same memory that does not keep its buffer from being reused;
        anything that is not a tensor in a buffer is returned unchanged."""
        if not isinstance(given, Tensor):
            return given
        buffer = self._made.get(given.untyped_storage().data_ptr())
        if buffer is None:
            return given
        numbers = buffer.view(given.dtype)
        return numbers.as_strided(given.shape, given.stride(), given.storage_offset())


class _Noting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode that gives results lasting addresses and notes the computations of PyTorch."""

    def __init__(self, buffers: _Buffers, calls: list[Callable[[], object]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._buffers = buffers
        self._calls = calls

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch imports its compiler, for seconds, when the first step is recorded.
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        run = functools.partial(func, *args, **(kwargs or {}))
        if func.is_view:
            view = run()
            if _shares_memory(view, args):
                return view
            # In inference mode `contiguous` and `reshape` appear as views, though they may have
            # copied.
            return self._computed(run, view)
        if func in _ALLOCATIONS:
            return self._lasting(run())
        result = run()
        if func._schema.is_mutable:
            self._calls.append(self._again(run))
            return result
        if not isinstance(result, Tensor):
            # The host reads these numbers and may then behave differently.
            raise NotRecordable(f"{func}: only operations that return one tensor can be recorded")
        return self._computed(run, result)

    def _computed(self, run: functools.partial[Any], result: Tensor) -> Tensor:
        """Copy a result to lasting memory, which `run` fills again."""
        lasting = self._lasting(result).copy_(result)
        place, again = self._buffers.borrowed(lasting), self._again(run)
        self._calls.append(lambda: place.copy_(again()))
        return lasting

    def _again(self, run: functools.partial[Any]) -> functools.partial[Any]:
        """Make a noted call that does not keep its arguments' memory: kept, the memory of all
        layers would add up."""
        args, kwargs = tree_map(self._buffers.borrowed, (run.args, run.keywords))
        return functools.partial(run.func, *args, **kwargs)

    def _lasting(self, result: Tensor) -> Tensor:
        """Return contiguous memory of a recording for a tensor like this."""
        if result.device.type != "cpu" or not result.is_contiguous():
            raise NotRecordable("only contiguous results in the host's memory can be recorded")
        return self._buffers.empty(result.shape, result.dtype)


def _shares_memory(view: Tensor | Sequence[Tensor], args: Sequence[Any]) -> bool:
    """Whether a view, or each of several views, shares the first argument's memory."""
    first = args[0]
    if not isinstance(view, Tensor):
        return all(_shares_memory(one, args) for one in view)
    return (
        isinstance(first, Tensor)
        and view.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
    )
