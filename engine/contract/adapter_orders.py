"""Orders to load and unload adapters while a model serves, and the interface of the loaded ones
(`engine.lora.text_adapters` implements it). Imports neither torch nor a wire library.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from engine.errors import EngineError, TooManyAdapters, UnknownAdapter


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterOrder:
    """An order to load the adapter in a folder, under the name `name`."""

    name: str
    folder: str
    replaces: bool = False
    """Whether it replaces the adapter of that name; running requests keep the old one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterReport:
    """What was found in the files of an adapter that is loaded."""

    num_layers: int
    """The number of the model's layers that the adapter changes."""
    ranks: tuple[int, ...]
    """The ranks of its layers, in order."""
    num_left_out: int = 0
    """The number of its layers that the model does not have, such as those for images."""
    left_out: tuple[str, ...] = ()
    """The names of the first few of those layers."""
    digest: str = ""
    """The digest of its files (`engine.weights.digest`)."""


Answer = Callable[[AdapterReport | EngineError | None], None]
"""Called when an order ends, with the report of a load, with an error, or with None after an
unload."""


class ServedAdapters(Protocol):
    """The adapters that a model has now. Used between two steps only.

    A name may mean another adapter later, so whatever outlasts a step uses a key instead, which
    never belongs to another adapter.
    """

    def key_of(self, name: str) -> str:
        """The key of the adapter that has this name now.

        Raises:
            UnknownAdapter: there is no adapter of that name.
        """
        ...

    def check(self, keys: Collection[str]) -> None:
        """Check that these adapters can be in place at the same time.

        Raises:
            InvalidParameter: they cannot.
        """
        ...

    def take(self, keys: Collection[str]) -> bool:
        """Whether the adapters are in place for a request that begins now. If so, it begins."""
        ...

    def failure_of(self, keys: Collection[str]) -> EngineError | None:
        """The reason why one of the adapters could not be put in place since `advance` began."""
        ...

    def load(self, order: AdapterOrder, answer: Answer) -> None:
        """Begin to load an adapter while steps continue."""
        ...

    def unload(self, name: str, answer: Answer) -> None:
        """Remove a name now, and its adapter once no request uses it."""
        ...

    def has_work(self) -> bool:
        """Whether `advance` has work now or will have some."""
        ...

    def advance(
        self, in_use: Callable[[], Collection[str]], waiting: Sequence[Collection[str]] = ()
    ) -> None:
        """Do what can be done without waiting.

        Args:
            in_use: the keys of the requests that have begun.
            waiting: the keys of each request that `take` has refused, in the order of arrival.
        """
        ...

    def wait(self, seconds: float) -> None:
        """Wait until `advance` can do more, for at most this time."""
        ...


class NoAdapters:
    """The `ServedAdapters` of a model that is served without adapters."""

    names: tuple[str, ...] = ()
    failed: Mapping[str, str] = MappingProxyType({})
    digests: Mapping[str, str] = MappingProxyType({})

    def key_of(self, name: str) -> str:
        raise UnknownAdapter(f"the model has no adapter {name!r}", param="model")

    def load(self, order: AdapterOrder, answer: Answer) -> None:
        answer(
            TooManyAdapters(
                "the model has no room for adapters; serve it with max_loras of at least 1",
                param="lora_name",
            )
        )

    def unload(self, name: str, answer: Answer) -> None:
        answer(UnknownAdapter(f"the model has no adapter {name!r}", param="lora_name"))

    def check(self, keys: Collection[str]) -> None:
        """Do nothing: no request can have keys."""

    def take(self, keys: Collection[str]) -> bool:
        return not keys

    def failure_of(self, keys: Collection[str]) -> None:
        """None, as nothing is ever put in place."""

    def has_work(self) -> bool:
        return False

    def advance(
        self, in_use: Callable[[], Collection[str]], waiting: Sequence[Collection[str]] = ()
    ) -> None:
        """Do nothing."""

    def wait(self, seconds: float) -> None:
        """Do nothing."""


@runtime_checkable
class AdaptableEngine(Protocol):
    """An engine that loads and unloads adapters while it serves."""

    def load_adapter(self, order: AdapterOrder, answer: Answer) -> None:
        """See `ServedAdapters.load`."""
        ...

    def unload_adapter(self, name: str, answer: Answer) -> None:
        """See `ServedAdapters.unload`."""
        ...
