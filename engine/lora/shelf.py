"""Adapters that come and go while a model serves, whatever they are kept in.

Files are read in a thread; what is ready is put in place between two steps. An adapter that leaves,
or is replaced, is kept until the last request that began with it has ended. Of more adapters than
have a place, those are in place that requests have or had last; another one is brought when a
request waits for it.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, ClassVar, Generic, Self, TypeVar

import structlog

from engine.adapter_orders import AdapterOrder, AdapterReport, Answer
from engine.config import EngineConfig, MachineFacts
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
"""What a place must have room for."""
Place = TypeVar("Place")
"""Where a table keeps an adapter that rows of steps can have."""
Steps = Generator["Future[Any] | None", None, AdapterReport | None]
"""Of a load; each gives what the next one has to wait for, None: for a step of the engine."""

MIB = 1 << 20

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterLimits:
    """How much a model may have of adapters."""

    max_adapters: int
    """As many names there may be at a time."""
    max_slots: int
    """As many are in place at a time."""
    max_bytes: int | None = None
    """That they take, copies included, while nothing grows. None: there is no limit."""
    capacity_bytes: int
    """See `Host.reserve`."""

    @classmethod
    def of(cls, intent: EngineConfig, machine: MachineFacts) -> Self:
        """As the operator wants them."""
        return cls(
            max_adapters=intent.max_adapters,
            max_slots=intent.max_adapter_slots,
            max_bytes=intent.adapter_bytes,
            capacity_bytes=machine.free_memory_bytes,
        )


@dataclass(slots=True)
class Kept(Generic[Size, Place]):
    """An adapter that can be asked for, or that some request still has."""

    name: str
    source: Source
    size: Size
    place: Place | None = None
    """None: it has to be brought before rows can have it."""
    placed: int = 0
    """When it was put there, by the shelf's count."""
    used: int = 0
    """When a request began with it last."""
    is_leaving: bool = False
    answer: Answer | None = None
    """To be told when it is gone."""


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


class Shelf(ABC, Generic[Size, Place]):
    """`engine.adapter_orders.AdapterShelf`. Loop thread only.

    Invariant: an adapter that a request has which has begun is in place.

    Attributes:
        failed: of the first adapters those that could not be loaded, by name, and why, in words
            that hold no path.
    """

    asked_by: ClassVar[str] = "model"
    """The field by which requests name an adapter."""

    def __init__(self, limits: AdapterLimits) -> None:
        self.failed: dict[str, str] = {}
        self._limits = limits
        self._keys: dict[str, str] = {}
        self._kept: dict[str, Kept[Size, Place]] = {}
        self._num_ever = count()
        self._now = count(1)
        self._loads: deque[_Load] = deque()
        self._returning: str | None = None
        self._closing: frozenset[str] = frozenset()
        """In place, but for no request that begins now: somebody waits for what they take."""
        self._failures: dict[str, EngineError] = {}
        self._thread = ThreadPoolExecutor(1, "load-adapters")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._keys)

    @property
    def digests(self) -> dict[str, str]:
        """Of the files of each adapter that has a name."""
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
        self._loads.append(_Load(order.name, order.folder, self._checked_steps(order), answer))

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
            except Exception as error:  # whatever a stranger's file can do, the model goes on
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

    @abstractmethod
    def _steps(self, order: AdapterOrder) -> Steps:
        """Load one adapter, and put it in place if there is room. Nothing has changed until the
        last step, in which nothing can fail."""

    @abstractmethod
    def _return(self, key: str) -> Steps:
        """Put an adapter in place again, unless another one has taken the room meanwhile."""

    @abstractmethod
    def _fits(self, size: Size, without: Collection[str] = (), *, more: int = 0) -> bool:
        """Whether there would be room for one more, if those had no place.

        Args:
            more: than `max_slots`, that there may be.
        """

    @abstractmethod
    def _bytes_of(self, sizes: Iterable[Size]) -> int:
        """That such adapters take, if no others are in place."""

    @abstractmethod
    def _withdraw(self, key: str, place: Place) -> None:
        """Free the place of an adapter that no request has."""

    @abstractmethod
    def _forget(self, key: str) -> None:
        """It is gone: nothing of it is needed any more."""

    @property
    def _is_in_turns(self) -> bool:
        """Whether there may be adapters that are not in place."""
        return (
            self._limits.max_bytes is not None or self._limits.max_slots < self._limits.max_adapters
        )

    def _placed(self, without: Collection[str] = ()) -> list[Kept[Size, Place]]:
        """Those that are in place."""
        every = self._kept.items()
        return [kept for key, kept in every if kept.place is not None and key not in without]

    def _has_room(self, name: str, size: Size) -> bool:
        """Whether an adapter that gets that name can be put in place, be it beside the one that it
        takes the place of."""
        before = self._keys.get(name)
        more = before is not None and self._kept[before].place is not None
        return self._fits(size, more=int(more))

    def _put(self, kept: Kept[Size, Place], place: Place) -> None:
        kept.place = place
        kept.placed = kept.used = next(self._now)

    def _exceeds(self, num_bytes: int) -> bool:
        return self._limits.max_bytes is not None and num_bytes > self._limits.max_bytes

    def _check_size(self, size: Size) -> None:
        """
        Raises:
            InsufficientMemory: not even if it is the only one.
        """
        num_bytes = self._bytes_of([size])
        if self._exceeds(num_bytes):
            raise InsufficientMemory(
                f"it takes {_mib(num_bytes)} MiB and lora_memory_gib allows "
                f"{_mib(self._limits.max_bytes or 0)} MiB; raise it"
            )

    def _keep(
        self, name: str, source: Source, size: Size, report: AdapterReport
    ) -> tuple[str, Kept[Size, Place]]:
        """Give a name to an adapter that is whole; returns its key. Whoever had the name leaves."""
        before = self._keys.get(name)
        if before is not None:
            self._kept[before].is_leaving = True
        # No name has such a character in it.
        key = self._keys[name] = f"{name}\0{next(self._num_ever)}"
        kept = self._kept[key] = Kept[Size, Place](name, source, size)
        log.info(
            "adapter loaded",
            adapter=name,
            layers=report.num_layers,
            ranks=list(report.ranks),
            left_out=report.num_left_out,
        )
        if report.left_out:
            log.warning(
                "layers of an adapter that the model has not are left out",
                adapter=name,
                names=", ".join(report.left_out),
                number=report.num_left_out,
            )
        return key, kept

    def _checked_steps(self, order: AdapterOrder) -> Steps:
        self._check_name(order)
        return (yield from self._steps(order))

    def _check_name(self, order: AdapterOrder) -> None:
        """
        Raises:
            ModelConflict: there is one of that name, and it is not to be replaced.
            TooManyAdapters: there are as many as may be, or they still have requests.
        """
        replaces = order.name in self._keys
        if replaces and not order.replaces:
            raise ModelConflict(f"an adapter {order.name!r} is loaded already", param="lora_name")
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
        """Forget adapters that leave and that no request has any more."""
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
        """Bring the first adapter that a waiting request lacks. Where others have to go for it,
        they take no more requests from now on, and go when they have none."""
        self._closing = frozenset()
        lacking = [key for key in wanted if self._kept[key].place is None]
        if not lacking or self._returning is not None:
            return
        kept, used = self._kept[lacking[0]], in_use()
        going = self._in_the_way(kept.size, used, wanted)
        if not self._fits(kept.size, going):
            self._failures[lacking[0]] = InsufficientMemory(
                f"adapter {kept.name!r} does not fit beside the others that are asked for with it"
            )
            return
        if any(key in used for key in going):
            self._closing = frozenset(going)
            return
        for key in going:
            self._evict(key)
        self._returning = lacking[0]
        answer = partial(self._end_return, lacking[0])
        # Nobody waits for those that were ordered later, but the one that has begun goes on.
        load = _Load(kept.name, kept.source.folder, self._return(lacking[0]), answer)
        self._loads.insert(1, load)

    def _in_the_way(self, size: Size, used: Collection[str], wanted: Collection[str]) -> list[str]:
        """Those that would have to go: of those without requests the one that was used least
        lately first, then of the others the one that has had its turn for longest."""
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
        log.debug("adapter has made way", adapter=kept.name)

    def _end_return(self, key: str, outcome: AdapterReport | EngineError | None) -> None:
        self._returning = None
        if isinstance(outcome, InsufficientMemory):
            self._failures[key] = outcome
        elif isinstance(outcome, EngineError):
            self._failures[key] = UnknownAdapter(
                f"adapter {self._kept[key].name!r} is not served: {outcome.message}",
                param=self.asked_by,
            )


def cause_of(error: Exception, name: str) -> EngineError:
    """What to say of a load that failed."""
    if isinstance(error, EngineError):
        return error
    log.exception("adapter failed to load", adapter=name, exc_info=error)
    return ModelLoadError(f"{type(error).__name__} while it was loaded")


def _mib(num_bytes: int) -> int:
    """Rounded up."""
    return -(-num_bytes // MIB)
