"""Computations on the CPU that are recorded, to be done again without the Python between the calls.

A step calls a few hundred operations, each for some microseconds of Python: checks, memory,
views. What they then call in C++ is the same in every step with as many rows, if inputs and results
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
"""Steps with prompts are recorded for multiples of so many rows."""
MOST_PROMPT_ROWS = 256
SMALLEST_BUFFER = 4096
"""Bytes; sizes above are rounded up to powers of two, so that recordings share buffers."""

_aten = torch.ops.aten
_ALLOCATIONS = (
    _aten.empty.memory_format,
    _aten.empty_like.default,
    _aten.empty_strided.default,
    _aten.new_empty.default,
)


class NotRecordable(RuntimeError):
    """A computation depends on numbers that may differ the next time, or needs much memory."""


def refuse_recording(reason: str) -> None:
    """Called by operations whose intermediate results no recording should keep.

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
    """What the calls' addresses are in, beside the inputs."""

    def replay(self) -> Tensor:
        """Compute again from what the inputs hold now. The result's memory is that of the next."""
        for call in self.calls:
            call()
        return self.output


class NativeRecorder:
    """Records functions of tensors. All recordings work in the same memory: one runs at a time."""

    is_cheap = True

    def __init__(self) -> None:
        self._buffers = _Buffers()

    def padded(self, num_rows: int) -> int:
        """The number of rows to record for so many: the same, since on a CPU each one costs."""
        return num_rows

    def padded_with_prompts(self, num_rows: int) -> int | None:
        """Few numbers for many, since each has to be recorded, and none for so many rows that
        Python hardly counts beside them."""
        if num_rows > MOST_PROMPT_ROWS:
            return None
        return -(-num_rows // PROMPT_ROWS) * PROMPT_ROWS

    def record(self, run: Callable[[], Tensor]) -> NativeRecording:
        """`run` is called once. It must be a fixed sequence of operations, whatever its inputs
        hold: those of C++ are noted instead of being computed, which is most of a step's time;
        PyTorch's are computed, from what their inputs happen to hold, and noted as well.

        Raises:
            NotRecordable: it reads numbers of a tensor, or calls what gives several.
        """
        with native.noting_calls() as calls, _Noting(self._buffers, calls):
            output = run()
        return NativeRecording(joined(calls), output, self._buffers)


@contextlib.contextmanager
def computed_once() -> Iterator[None]:
    """For what a function does only when it is first needed, such as to fill a table: it is no part
    of a recording that happens to be made then."""
    with _disable_current_modes(), native.making_calls():
        yield


class _Buffers:
    """Memory for intermediate results, which is used again once nothing refers to it."""

    def __init__(self) -> None:
        self._free: dict[int, list[Tensor]] = defaultdict(list)
        self._made: dict[int, Tensor] = {}
        """All buffers that there are, by address."""
        self.num_bytes = 0
        """Of them."""

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
        # A tensor keeps the array that it was made from, not its views: when the last tensor goes
        # that shares the memory, so does the array.
        array = buffer.numpy()[:num_bytes]
        weakref.finalize(array, free.append, buffer).atexit = False
        return torch.from_numpy(array).view(dtype).view(tuple(shape))

    def borrowed(self, given: Any) -> Any:
        """Of a tensor in a buffer, one over the same memory that does not keep it from being used
        again; anything else as it is."""
        if not isinstance(given, Tensor):
            return given
        buffer = self._made.get(given.untyped_storage().data_ptr())
        if buffer is None:
            return given
        numbers = buffer.view(given.dtype)
        return numbers.as_strided(given.shape, given.stride(), given.storage_offset())


class _Noting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees to it that results have addresses that last, and notes what PyTorch computes."""

    def __init__(self, buffers: _Buffers, calls: list[Callable[[], object]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._buffers = buffers
        self._calls = calls

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else torch imports its compiler, for seconds, when the first step is recorded.
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
            # In inference mode `contiguous` and `reshape` come as views, and may have copied.
            return self._computed(run, view)
        if func in _ALLOCATIONS:
            return self._lasting(run())
        result = run()
        if func._schema.is_mutable:
            self._calls.append(self._again(run))
            return result
        if not isinstance(result, Tensor):
            # Numbers that the host reads, by which it may go on differently.
            raise NotRecordable(f"{func}: only operations that give one tensor are recorded")
        return self._computed(run, result)

    def _computed(self, run: functools.partial[Any], result: Tensor) -> Tensor:
        """A result in memory that lasts, which `run` fills again."""
        lasting = self._lasting(result).copy_(result)
        place, again = self._buffers.borrowed(lasting), self._again(run)
        self._calls.append(lambda: place.copy_(again()))
        return lasting

    def _again(self, run: functools.partial[Any]) -> functools.partial[Any]:
        """What is noted stays, and its arguments with it: they would be all layers' at once."""
        args, kwargs = tree_map(self._buffers.borrowed, (run.args, run.keywords))
        return functools.partial(run.func, *args, **kwargs)

    def _lasting(self, result: Tensor) -> Tensor:
        """Contiguous memory of a recording for a tensor like this."""
        if result.device.type != "cpu" or not result.is_contiguous():
            raise NotRecordable("only contiguous results in the host's memory are recorded")
        return self._buffers.empty(result.shape, result.dtype)


def _shares_memory(view: Tensor, args: Sequence[Any]) -> bool:
    """Whether it is of the first argument's memory."""
    first = args[0]
    return (
        isinstance(first, Tensor)
        and view.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
    )
