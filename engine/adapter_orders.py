"""Adapters that come and go while a model serves: what is ordered, and what an engine asks of
whoever keeps them (`engine.lora.table`). No torch, no wire library.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from engine.errors import EngineError, TooManyAdapters, UnknownAdapter


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterOrder:
    """Load the adapter in a folder, to be asked for by `name`."""

    name: str
    folder: str
    replaces: bool = False
    """It takes the place of the one of that name, whose running requests go on with what they
    have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterReport:
    """What was found in the files of an adapter that is loaded."""

    num_layers: int
    """Of the model, that it changes."""
    ranks: tuple[int, ...]
    """Those that its layers have, in order."""
    num_left_out: int = 0
    """Its layers that the model has not, such as those of images."""
    left_out: tuple[str, ...] = ()
    """The first of them."""
    digest: str = ""
    """Of its files (`engine.weights.digest`)."""


Answer = Callable[[AdapterReport | EngineError | None], None]
"""Told how an order ended: what was loaded, why it could not be, or None once one is gone."""


class AdapterShelf(Protocol):
    """The adapters that a model has now. Between two steps only.

    A name may mean another adapter later, so whatever outlasts a step goes by a key instead, which
    no other adapter will ever have.
    """

    def key_of(self, name: str) -> str:
        """
        Raises:
            UnknownAdapter: there is none of that name.
        """
        ...

    def check(self, keys: Collection[str]) -> None:
        """
        Raises:
            InvalidParameter: they cannot be in place all at once.
        """
        ...

    def take(self, keys: Collection[str]) -> bool:
        """Whether they are in place for a request that begins now; True: it does begin."""
        ...

    def failure_of(self, keys: Collection[str]) -> EngineError | None:
        """Why one of them could not be brought in place since `advance` began."""
        ...

    def load(self, order: AdapterOrder, answer: Answer) -> None:
        """Begin to load one, beside the steps."""
        ...

    def unload(self, name: str, answer: Answer) -> None:
        """Take a name away now, and the adapter once nobody uses it."""
        ...

    def has_work(self) -> bool:
        """Whether `advance` has something to do, or will have."""
        ...

    def advance(
        self, in_use: Callable[[], Collection[str]], waiting: Sequence[Collection[str]] = ()
    ) -> None:
        """Bring forward what can be without waiting.

        Args:
            in_use: the keys that requests have which have begun.
            waiting: those of each request that has not, because `take` said no, first come first.
        """
        ...

    def wait(self, seconds: float) -> None:
        """Until `advance` can go on, but not longer."""
        ...


class NoAdapters:
    """The `AdapterShelf` of a model that may have none."""

    names: tuple[str, ...] = ()
    failed: Mapping[str, str] = MappingProxyType({})
    digests: Mapping[str, str] = MappingProxyType({})

    def key_of(self, name: str) -> str:
        raise UnknownAdapter(f"the model has no adapter {name!r}", param="model")

    def load(self, order: AdapterOrder, answer: Answer) -> None:
        answer(
            TooManyAdapters(
                "the model may have no adapters; set max_loras to as many as it shall have",
                param="lora_name",
            )
        )

    def unload(self, name: str, answer: Answer) -> None:
        answer(UnknownAdapter(f"the model has no adapter {name!r}", param="lora_name"))

    def check(self, keys: Collection[str]) -> None:
        """There are none to ask for."""

    def take(self, keys: Collection[str]) -> bool:
        return not keys

    def failure_of(self, keys: Collection[str]) -> None:
        """Nothing is ever brought."""

    def has_work(self) -> bool:
        return False

    def advance(
        self, in_use: Callable[[], Collection[str]], waiting: Sequence[Collection[str]] = ()
    ) -> None:
        """There is nothing to do."""

    def wait(self, seconds: float) -> None:
        """There is nothing to wait for."""


@runtime_checkable
class AdaptableEngine(Protocol):
    """An engine whose adapters come and go."""

    def load_adapter(self, order: AdapterOrder, answer: Answer) -> None:
        """See `AdapterShelf.load`."""
        ...

    def unload_adapter(self, name: str, answer: Answer) -> None:
        """See `AdapterShelf.unload`."""
        ...
