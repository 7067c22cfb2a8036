"""Adapters that are loaded and unloaded while a model serves, independent of how they are stored.

Files are read in a thread; an adapter that is ready is put in place between two steps. An adapter
that is unloaded or replaced is kept until the last request that began with it has ended. If there
are more adapters than places, the most recently used ones are in place; another one is put in place
when a request waits for it.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar, cast

import structlog

from engine.contract.adapter_orders import AdapterOrder, AdapterReport, Answer
from engine.contract.adapter_settings import AdapterSettings
from engine.contract.host import Grant, Host
from engine.contract.resolved_config import MachineFacts
from engine.errors import (
    EngineError,
    InsufficientMemory,
    InvalidParameter,
    ModelConflict,
    ModelLoadError,
    TooManyAdapters,
    UnknownAdapter,
)
from engine.lora.source import Source

Size = TypeVar("Size")
"""The size that must fit into a place."""
Place = TypeVar("Place")
"""The place of an adapter that rows of steps can have."""
Result = TypeVar("Result")
Steps = Generator["Future[Any] | None", None, AdapterReport | None]
"""The stages of a load. Each yields what the next one must wait for; None is a step of the
engine."""

MIB = 1 << 20

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterLimits:
    """The limits of a model's adapters."""

    max_adapters: int
    """The most names at a time."""
    max_slots: int
    """The most adapters in place at a time."""
    max_bytes: int | None = None
    """The most bytes that adapters take, copies included, while nothing grows. None is no limit."""
    capacity_bytes: int
    """See `Host.reserve`."""

    @classmethod
    def of(cls, intent: AdapterSettings, machine: MachineFacts) -> Self:
        """Read the limits from the operator's settings."""
        return cls(
            max_adapters=intent.max_adapters,
            max_slots=intent.max_adapter_slots,
            max_bytes=intent.adapter_bytes,
            capacity_bytes=machine.free_memory_bytes,
        )


@dataclass(slots=True)
class Kept(Generic[Size, Place]):
    """An adapter that can be asked for, or that a request still has."""

    name: str
    source: Source
    size: Size
    place: Place | None = None
    """The place, or None if the adapter must be put in place before rows can have it."""
    placed: int = 0
    """When the adapter was put in place, counted in uses of all adapters."""
    used: int = 0
    """When a request last began with the adapter, counted in the same way."""
    is_leaving: bool = False
    answer: Answer | None = None
    """The answer to give when the adapter is gone."""


@dataclass(slots=True)
class _Load:
    name: str
    folder: str
    steps: Steps
    answer: Answer
    awaited: "Future[Any] | None" = None

    @property
    def is_waiting(self) -> bool:
        return self.awaited is not None and not self.awaited.done()


class ReadAdapter(NamedTuple):
    """An adapter that has been read completely."""

    source: Source
    size: Any
    report: AdapterReport
    numbers: Any
    grant: Grant | None = None
    """The grant of the memory with the numbers, if it was borrowed."""


class LoadedAdapters(ABC, Generic[Size, Place]):
    """An `engine.contract.adapter_orders.ServedAdapters`. Loop thread only.

    Invariant: the adapter of a request that has begun is in place.

    Attributes:
        failed: the first adapters that could not be loaded, by name, with reasons that hold no
            path.
    """

    asked_by: ClassVar[str] = "model"
    """The field by which requests name an adapter."""

    def __init__(self, limits: AdapterLimits, host: Host, device: str) -> None:
        self.failed: dict[str, str] = {}
        self._host = host
        self._device = device
        self._limits = limits
        self._keys: dict[str, str] = {}
        self._kept: dict[str, Kept[Size, Place]] = {}
        self._num_ever = count()
        self._now = count(1)
        self._loads: deque[_Load] = deque()
        self._returning: str | None = None
        self._closing: frozenset[str] = frozenset()
        """Adapters in place that no new request may begin with, because others wait for their
        places."""
        self._failures: dict[str, EngineError] = {}
        self._thread = ThreadPoolExecutor(1, "load-adapters")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._keys)

    @property
    def digests(self) -> dict[str, str]:
        """The digest of the files of each adapter that has a name."""
        return {name: self._kept[key].source.digest for name, key in self._keys.items()}

    def key_of(self, name: str) -> str:
        if name not in self._keys:
            raise UnknownAdapter(f"the model has no adapter {name!r}", param=self.asked_by)
        return self._keys[name]

    def check(self, keys: Collection[str]) -> None:
        if len(keys) > self._limits.max_slots:
            raise InvalidParameter(
                f"{len(keys)} adapters are asked for at once; max_loras is "
                f"{self._limits.max_slots}; ask for fewer",
                param=self.asked_by,
            )
        num_bytes = self._bytes_of(self._kept[key].size for key in keys)
        if self._exceeds(num_bytes):
            raise InvalidParameter(
                f"the {len(keys)} adapters take {_mib(num_bytes)} MiB at once; lora_memory_gib "
                f"allows {_mib(self._limits.max_bytes or 0)} MiB; ask for fewer",
                param=self.asked_by,
            )

    def take(self, keys: Collection[str]) -> bool:
        wanted = [self._kept[key] for key in keys]
        if any(kept.place is None for kept in wanted) or not self._closing.isdisjoint(keys):
            return False
        for kept in wanted:
            kept.used = next(self._now)
        return True

    def failure_of(self, keys: Collection[str]) -> EngineError | None:
        return next((self._failures[key] for key in keys if key in self._failures), None)

    def load(self, order: AdapterOrder, answer: Answer) -> None:
        self._loads.append(_Load(order.name, order.folder, self._steps(order), answer))

    def unload(self, name: str, answer: Answer) -> None:
        key = self._keys.pop(name, None)
        if key is None:
            answer(UnknownAdapter(f"the model has no adapter {name!r}", param="lora_name"))
            return
        self._kept[key].is_leaving = True
        self._kept[key].answer = answer

    def has_work(self) -> bool:
        return bool(self._loads) or any(kept.is_leaving for kept in self._kept.values())

    def advance(
        self, in_use: Callable[[], Collection[str]], waiting: Sequence[Collection[str]] = ()
    ) -> None:
        self._failures.clear()
        self._let_go(in_use, waiting)
        self._make_way(in_use, waiting[0] if waiting else ())
        while self._loads and not self._loads[0].is_waiting:
            load = self._loads[0]
            try:
                load.awaited = next(load.steps)
                if load.awaited is None:
                    return
                continue
            except StopIteration as end:
                outcome: AdapterReport | EngineError | None = end.value
            except Exception as error:  # a bad file must not stop the model
                outcome = cause_of(error, load.name)
                log.error(
                    "adapter failed to load",
                    adapter=load.name,
                    folder=load.folder,
                    reason=outcome.message,
                )
            self._loads.popleft()
            load.answer(outcome)

    def wait(self, seconds: float) -> None:
        if self._loads and self._loads[0].awaited is not None:
            wait([self._loads[0].awaited], timeout=seconds)

    def _leave_out(self, name: str, folder: str, error: Exception) -> None:
        """Note the reason why one of the first adapters cannot be served."""
        reason = self.failed[name] = cause_of(error, name).message
        log.error("adapter failed to load", adapter=name, folder=folder, reason=reason)

    @abstractmethod
    def _reading(
        self, folder: str, *, is_new: bool = False
    ) -> Generator["Future[Any] | None", None, ReadAdapter]:
        """Read an adapter's files. For a new one, also compute their digest."""

    @abstractmethod
    def _enter(self, key: str, read: ReadAdapter, place: Any) -> None:
        """Put an adapter in the place that was made ready for it. This cannot fail."""

    @abstractmethod
    def _bytes_of(self, sizes: Iterable[Size]) -> int:
        """The bytes that adapters of these sizes take if no others are in place."""

    @abstractmethod
    def _withdraw(self, key: str, place: Place) -> None:
        """Free the place of an adapter that no request has."""

    def _making_ready(self, read: ReadAdapter) -> Generator["Future[Any] | None", None, Any]:
        """Make a place ready for an adapter. By default, its place is the memory of its numbers."""
        yield from ()
        return read.grant

    def _copy_of(self, key: str) -> ReadAdapter | None:
        """The copy of an adapter, or None if it must be read from its files."""

    def _keep_copy(self, key: str, read: ReadAdapter) -> None:
        """Keep a copy of an adapter, if there is memory for it."""

    def _forget(self, key: str) -> None:
        """Drop what is kept for an adapter that is gone beside its place."""

    def _bytes_with(self, size: Size, without: Collection[str]) -> int:
        """The bytes that adapters take with one more if the adapters `without` have no place."""
        return self._bytes_of([*(kept.size for kept in self._placed(without)), size])

    def _fits(self, size: Size, without: Collection[str] = (), *, more: int = 0) -> bool:
        """Whether one more adapter would fit if the adapters `without` had no place.

        Args:
            more: number of adapters allowed above `max_slots`.
        """
        is_free = len(self._placed(without)) < self._limits.max_slots + more
        return is_free and not self._exceeds(self._bytes_with(size, without))

    def _steps(self, order: AdapterOrder) -> Steps:
        """Load one adapter, and put it in place if it fits. Only the last step changes anything,
        and it cannot fail."""
        self._check_name(order)
        read = yield from self._reading(order.folder, is_new=True)
        has_room = self._has_room(order.name, read.size)
        place = (yield from self._making_ready(read)) if has_room else None
        key = self._keep(order.name, read)
        if place is not None:
            self._enter(key, read, place)
        else:
            self._keep_copy(key, read)
            self._give_back(read.grant)
        return replace(read.report, digest=read.source.digest)

    def _return(self, key: str) -> Steps:
        """Put an adapter in place again, unless another one has taken the memory meanwhile."""
        kept, read = self._kept[key], self._copy_of(key)
        if read is None:
            read = yield from self._reading(kept.source.folder)
        is_same = read.source == kept.source
        if is_same and self._fits(kept.size):
            place = yield from self._making_ready(read)
            self._enter(key, read, place)
        else:
            self._give_back(read.grant)
            kept.source.check_unchanged(read.source)
        return None

    def _aside(self, work: Callable[[], Result]) -> Generator["Future[Any] | None", None, Result]:
        """Run the work in the thread."""
        doing = self._thread.submit(work)
        yield doing
        return doing.result()

    def _borrow(self, num_bytes: int) -> Grant:
        capacity_bytes = self._limits.capacity_bytes
        return self._host.borrow(self._device, "adapters", num_bytes, capacity_bytes)

    def _give_back(self, *grants: Grant | None) -> None:
        for grant in grants:
            if grant is not None:
                self._host.give_back(grant)

    @property
    def _is_in_turns(self) -> bool:
        """Whether there may be adapters that are not in place."""
        return (
            self._limits.max_bytes is not None or self._limits.max_slots < self._limits.max_adapters
        )

    def _placed(self, without: Collection[str] = ()) -> list[Kept[Size, Place]]:
        """Return the adapters that are in place."""
        every = self._kept.items()
        return [kept for key, kept in every if kept.place is not None and key not in without]

    def _has_room(self, name: str, size: Size) -> bool:
        """Whether an adapter of that name can be put in place, even beside the one that it
        replaces."""
        before = self._keys.get(name)
        more = before is not None and self._kept[before].place is not None
        return self._fits(size, more=int(more))

    def _put(self, kept: Kept[Size, Place], place: Place) -> None:
        kept.place = place
        kept.placed = kept.used = next(self._now)

    def _exceeds(self, num_bytes: int) -> bool:
        return self._limits.max_bytes is not None and num_bytes > self._limits.max_bytes

    def _check_size(self, size: Size) -> None:
        """Check that an adapter would fit if it were the only one.

        Raises:
            InsufficientMemory: it would not.
        """
        num_bytes = self._bytes_of([size])
        if self._exceeds(num_bytes):
            raise InsufficientMemory(
                f"the adapter takes {_mib(num_bytes)} MiB; lora_memory_gib allows "
                f"{_mib(self._limits.max_bytes or 0)} MiB; raise it"
            )

    def _keep(self, name: str, read: ReadAdapter) -> str:
        """Give a name to an adapter that has been read completely and return its key. The previous
        adapter of that name is unloaded."""
        before = self._keys.get(name)
        if before is not None:
            self._kept[before].is_leaving = True
        # No name contains this character.
        key = self._keys[name] = f"{name}\0{next(self._num_ever)}"
        self._kept[key] = Kept(name, read.source, read.size)
        report = read.report
        log.info(
            "adapter loaded",
            adapter=name,
            layers=report.num_layers,
            ranks=list(report.ranks),
            left_out=report.num_left_out,
        )
        if report.left_out:
            log.warning(
                "left out layers of the adapter that the model does not have",
                adapter=name,
                names=", ".join(report.left_out),
                number=report.num_left_out,
            )
        return key

    def _check_name(self, order: AdapterOrder) -> None:
        """Check that an adapter of the order's name can be added.

        Raises:
            ModelConflict: the name is taken, and its adapter is not to be replaced.
            TooManyAdapters: the limit is reached, perhaps by adapters that still have requests.
        """
        replaces = order.name in self._keys
        if replaces and not order.replaces:
            raise ModelConflict(f"adapter {order.name!r} is already loaded", param="lora_name")
        most = self._limits.max_adapters
        if len(self._kept) >= most + replaces:
            num_leaving = sum(kept.is_leaving for kept in self._kept.values())
            leaving = f" ({num_leaving} of them until their requests end)" if num_leaving else ""
            limit = "max_loras" if most == self._limits.max_slots else "max_cpu_loras"
            raise TooManyAdapters(
                f"the model has {len(self._kept)} adapters{leaving} and {limit} is {most}; unload "
                f"one, or raise {limit}",
                param="lora_name",
            )

    def _let_go(
        self, in_use: Callable[[], Collection[str]], waiting: Iterable[Collection[str]]
    ) -> None:
        """Forget unloaded adapters that no request has any more."""
        leaving = [key for key, kept in self._kept.items() if kept.is_leaving]
        if not leaving:
            return
        used = {*in_use(), *(key for keys in waiting for key in keys), self._returning}
        for key in leaving:
            if key in used:
                continue
            kept = self._kept.pop(key)
            log.info("adapter unloaded", adapter=kept.name)
            if kept.place is not None:
                self._withdraw(key, kept.place)
            self._forget(key)
            if kept.answer is not None:
                kept.answer(None)

    def _make_way(self, in_use: Callable[[], Collection[str]], wanted: Collection[str]) -> None:
        """Put in place the first adapter that a waiting request lacks. Adapters that must be
        evicted for it take no more requests from now on, and are evicted when they have none."""
        self._closing = frozenset()
        lacking = [key for key in wanted if self._kept[key].place is None]
        if not lacking or self._returning is not None:
            return
        kept, used = self._kept[lacking[0]], in_use()
        going = self._in_the_way(kept.size, used, wanted)
        if not self._fits(kept.size, going):
            self._failures[lacking[0]] = InsufficientMemory(
                f"adapter {kept.name!r} does not fit beside the others of the same request"
            )
            return
        if any(key in used for key in going):
            self._closing = frozenset(going)
            return
        for key in going:
            self._evict(key)
        self._returning = lacking[0]
        answer = partial(self._end_return, lacking[0])
        # It goes before loads that were ordered later, and after the one that has begun.
        load = _Load(kept.name, kept.source.folder, self._return(lacking[0]), answer)
        self._loads.insert(1, load)

    def _in_the_way(self, size: Size, used: Collection[str], wanted: Collection[str]) -> list[str]:
        """The adapters that would have to be evicted: first those without requests, least recently
        used first, then the others, longest in place first."""
        others = [
            (key in used, kept.placed if key in used else kept.used, key)
            for key, kept in self._kept.items()
            if kept.place is not None and key not in wanted
        ]
        going: list[str] = []
        for _, _, key in sorted(others):
            if self._fits(size, going):
                break
            going.append(key)
        return going

    def _evict(self, key: str) -> None:
        kept = self._kept[key]
        assert kept.place is not None
        place, kept.place = kept.place, None
        self._withdraw(key, place)
        log.debug("adapter evicted", adapter=kept.name)

    def _end_return(self, key: str, outcome: AdapterReport | EngineError | None) -> None:
        self._returning = None
        if isinstance(outcome, InsufficientMemory):
            self._failures[key] = outcome
        elif isinstance(outcome, EngineError):
            self._failures[key] = UnknownAdapter(
                f"adapter {self._kept[key].name!r} is not served: {outcome.message}",
                param=self.asked_by,
            )


def finish(steps: "Generator[Future[Any] | None, None, Result]") -> Result:
    """Run a generator's stages one after the other, and return its result."""
    while True:
        try:
            awaited = next(steps)
        except StopIteration as end:
            return cast(Result, end.value)
        if awaited is not None:
            wait([awaited])


def cause_of(error: Exception, name: str) -> EngineError:
    """The error to report for a load that failed."""
    if isinstance(error, EngineError):
        return error
    log.exception("adapter failed to load", adapter=name, exc_info=error)
    return ModelLoadError(f"{type(error).__name__} while the adapter was loaded")


def _mib(num_bytes: int) -> int:
    """Convert bytes to MiB, rounded up."""
    return -(-num_bytes // MIB)
