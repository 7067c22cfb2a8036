"""Adapters that come and go while a model serves, whatever they are kept in.

Files are read in a thread; what is ready is put in place between two steps. An adapter that leaves,
or is replaced, is kept until the last request that began with it has ended.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar, Generic, TypeVar

import structlog

from engine.adapter_orders import AdapterOrder, AdapterReport, Answer
from engine.errors import (
    EngineError,
    ModelConflict,
    ModelLoadError,
    TooManyAdapters,
    UnknownAdapter,
)

Place = TypeVar("Place")
"""Where a table keeps an adapter."""
Steps = Generator["Future[Any] | None", None, AdapterReport]
"""Of a load; each gives what the next one has to wait for, None: for a step of the engine."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Kept(Generic[Place]):
    """An adapter in its place."""

    name: str
    place: Place
    is_leaving: bool = False
    answer: Answer | None = None
    """To be told when it is gone."""


@dataclass(slots=True)
class _Load:
    order: AdapterOrder
    steps: Steps
    answer: Answer
    awaited: "Future[Any] | None" = None

    @property
    def is_waiting(self) -> bool:
        return self.awaited is not None and not self.awaited.done()


class Shelf(ABC, Generic[Place]):
    """`engine.adapter_orders.AdapterShelf`. Loop thread only.

    Args:
        max_adapters: as many names there may be at a time.

    Attributes:
        failed: of the first adapters those that could not be loaded, by name, and why, in words
            that hold no path.
    """

    asked_by: ClassVar[str] = "model"
    """The field by which requests name an adapter."""

    def __init__(self, *, max_adapters: int) -> None:
        self.failed: dict[str, str] = {}
        self._max_adapters = max_adapters
        self._keys: dict[str, str] = {}
        self._kept: dict[str, Kept[Place]] = {}
        self._num_ever = count()
        self._loads: deque[_Load] = deque()
        self._thread = ThreadPoolExecutor(1, "load-adapters")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._keys)

    def key_of(self, name: str) -> str:
        if name not in self._keys:
            raise UnknownAdapter(f"the model has no adapter {name!r}", param=self.asked_by)
        return self._keys[name]

    def load(self, order: AdapterOrder, answer: Answer) -> None:
        self._loads.append(_Load(order, self._checked_steps(order), answer))

    def unload(self, name: str, answer: Answer) -> None:
        key = self._keys.pop(name, None)
        if key is None:
            answer(UnknownAdapter(f"the model has no adapter {name!r}", param="lora_name"))
            return
        self._kept[key].is_leaving = True
        self._kept[key].answer = answer

    def has_work(self) -> bool:
        return bool(self._loads) or any(kept.is_leaving for kept in self._kept.values())

    def advance(self, in_use: Callable[[], Collection[str]]) -> None:
        self._let_go(in_use)
        while self._loads and not self._loads[0].is_waiting:
            load = self._loads[0]
            try:
                load.awaited = next(load.steps)
                if load.awaited is None:
                    return
                continue
            except StopIteration as end:
                outcome: AdapterReport | EngineError = end.value
            except Exception as error:  # whatever a stranger's file can do, the model goes on
                outcome = cause_of(error, load.order.name)
                log.error(
                    "adapter failed to load",
                    adapter=load.order.name,
                    folder=load.order.folder,
                    reason=outcome.message,
                )
            self._loads.popleft()
            load.answer(outcome)

    def wait(self, seconds: float) -> None:
        if self._loads and self._loads[0].awaited is not None:
            wait([self._loads[0].awaited], timeout=seconds)

    @abstractmethod
    def _steps(self, order: AdapterOrder) -> Steps:
        """Load one adapter. Nothing has changed until the last step, in which nothing can fail."""

    @abstractmethod
    def _forget(self, key: str, place: Place) -> None:
        """Free the place of an adapter that no request has any more."""

    def _keep(self, name: str, place: Place, report: AdapterReport) -> str:
        """Give a name to what is in its place; returns its key. Whoever had the name leaves."""
        before = self._keys.get(name)
        if before is not None:
            self._kept[before].is_leaving = True
        # No name has such a character in it.
        key = self._keys[name] = f"{name}\0{next(self._num_ever)}"
        self._kept[key] = Kept(name, place)
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
        return key

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
        if len(self._kept) >= self._max_adapters + replaces:
            num_leaving = sum(kept.is_leaving for kept in self._kept.values())
            leaving = f" ({num_leaving} of them until their requests end)" if num_leaving else ""
            raise TooManyAdapters(
                f"the model has {len(self._kept)} adapters{leaving} and max_loras is "
                f"{self._max_adapters}; unload one, or raise max_loras",
                param="lora_name",
            )

    def _let_go(self, in_use: Callable[[], Collection[str]]) -> None:
        """Free the places of adapters that leave and that no request has any more."""
        leaving = [key for key, kept in self._kept.items() if kept.is_leaving]
        if not leaving:
            return
        used = in_use()
        for key in leaving:
            if key in used:
                continue
            kept = self._kept.pop(key)
            log.info("adapter unloaded", adapter=kept.name)
            self._forget(key, kept.place)
            if kept.answer is not None:
                kept.answer(None)


def cause_of(error: Exception, name: str) -> EngineError:
    """What to say of a load that failed."""
    if isinstance(error, EngineError):
        return error
    log.exception("adapter failed to load", adapter=name, exc_info=error)
    return ModelLoadError(f"{type(error).__name__} while it was loaded")
