"""Loads and unloads models for clients, as far as the operator allows it.

The engine does the work (`engine/worker/client.py`); this module decides what and how much may be
loaded, and remembers why the latest loads failed.
"""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from engine.contract.adapter_orders import AdapterOrder, AdapterReport
from engine.contract.model_spec import ModelSpec, settings_of_clients, settings_of_models
from engine.contract.request import Info
from engine.contract.status import ModelStatus
from engine.errors import (
    Draining,
    EngineError,
    Failure,
    InvalidParameter,
    NotAllowed,
    TooManyModels,
)
from engine.weights.adapter_source import needs_hub, resolve_adapter
from engine.worker.client import EngineClient
from server.http.lifecycle import Lifecycle
from server.models.loadable import LoadableModels
from server.models.loadable_adapters import LoadableAdapters
from server.settings import Settings

_KEPT_FAILURES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOrder:
    """A client's order to load a model.

    Attributes:
        model: the name to serve it under; without `ref` also the model to load.
        ref: the model to load.
        device, settings: these replace those of the operator's entry.
    """

    model: str
    ref: str | None = None
    device: str | None = None
    settings: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryEntry:
    """A model that is loaded, or may be loaded.

    Attributes:
        settings: the model's own settings, and its device.
        status: None while it is not loaded.
        info: facts about it, once it serves.
        failure: why its latest load failed.
    """

    name: str
    is_loadable: bool
    settings: Mapping[str, Any]
    status: ModelStatus | None = None
    info: Info | None = None
    failure: Failure | None = None


class ModelLibrary:
    """The models of one app. Event loop only."""

    def __init__(self, settings: Settings, engine: EngineClient, lifecycle: Lifecycle) -> None:
        self._settings = settings
        self._engine = engine
        self._lifecycle = lifecycle
        self._loadable = LoadableModels(settings)
        self._loadable_adapters = LoadableAdapters(settings)
        self._failures: dict[str, Failure] = {}
        # Separate from other work, which a slow network must not hold up.
        self._fetching = ThreadPoolExecutor(1, "fetch-adapters")

    async def load(self, order: LoadOrder) -> tuple[str, asyncio.Task[Info]]:
        """Begin to load a model, or to wake one that sleeps.

        Returns:
            The name under which it will be served, and what `EngineClient.load` returns.

        Raises:
            NotAllowed: the operator has not enabled it.
            Draining: the server is shutting down.
            UnknownModel: the operator does not allow this model.
            InvalidParameter: a setting is wrong.
            TooManyModels: as many models are loaded as `models_max` allows.
            EngineError: as in `EngineClient.load`.
        """
        self.check_open()
        if self._engine.is_asleep(order.model) and order == LoadOrder(model=order.model):
            return order.model, asyncio.create_task(self._engine.wake(order.model))
        spec = self._ordered(
            await asyncio.to_thread(self._loadable.find, order.model, order.ref), order
        )
        self._check_room(spec.name)
        load = self._engine.load(self._settings.complete(spec))
        self._failures.pop(spec.name, None)
        load.add_done_callback(partial(self._note_failure, spec.name))
        return spec.name, load

    def unload(self, model: str, drain_timeout_s: float | None = None) -> asyncio.Task[None]:
        """Begin to unload a model. Its requests may take the server's drain time-out, unless
        another time is given.

        Raises:
            NotAllowed, Draining: as in `load`.
            EngineError: as in `EngineClient.unload`.
        """
        self.check_open()
        most_s = self._settings.drain_timeout_s
        return self._engine.unload(model, most_s if drain_timeout_s is None else drain_timeout_s)

    async def load_adapter(
        self, model: str, name: str, place: str | None, *, replaces: bool
    ) -> asyncio.Future[AdapterReport]:
        """Begin to load a LoRA adapter.

        Args:
            place: the name or folder of an adapter that may be loaded; None for the one called
                `name`.

        Returns:
            What `EngineClient.load_adapter` returns.

        Raises:
            NotAllowed, Draining: as in `load`.
            UnknownAdapter: the operator does not allow this adapter.
            ModelLoadError: it cannot be fetched from the hub.
            InvalidParameter: the name cannot be used in requests.
            EngineError: as in `EngineClient.load_adapter`.
        """
        self.check_open()
        folder = await asyncio.to_thread(self._loadable_adapters.find, name, place)
        await self._engine.wake(model)
        if await asyncio.to_thread(needs_hub, folder):
            loop = asyncio.get_running_loop()
            folder = await loop.run_in_executor(self._fetching, self._fetch_adapter, folder)
        order = AdapterOrder(name=name, folder=folder, replaces=replaces)
        return self._engine.load_adapter(model, order)

    def _fetch_adapter(self, ref: str) -> str:
        return resolve_adapter(
            ref,
            cache_dir=self._settings.cache_path,
            offline=self._settings.offline,
            on_progress=lambda fraction, line: None,
        )

    async def unload_adapter(self, model: str, name: str) -> asyncio.Future[None]:
        """Begin to unload a LoRA adapter. Its requests may take the server's drain time-out.

        Raises:
            NotAllowed, Draining: as in `load`.
            EngineError: as in `EngineClient.unload_adapter`.
        """
        self.check_open()
        await self._engine.wake(model)
        return self._engine.unload_adapter(model, name, self._settings.drain_timeout_s)

    async def entries(self) -> list[LibraryEntry]:
        """The models that are loaded, then those that may be loaded, then other loads that failed
        recently."""
        specs: dict[str, ModelSpec] = {}
        if self._settings.enable_runtime_loading:
            specs = {s.name: s for s in await asyncio.to_thread(self._loadable.specs)}
        statuses = {status.model: status for status in self._engine.statuses()}
        infos = {info.model: info for info in self._engine.models()}
        return [
            LibraryEntry(
                name=name,
                is_loadable=name in specs,
                settings=self._own_settings(name) if name in statuses else _given(specs.get(name)),
                status=statuses.get(name),
                info=infos.get(name),
                failure=self._failures.get(name),
            )
            for name in {**statuses, **specs, **self._failures}
        ]

    async def entry(self, name: str) -> LibraryEntry:
        """The entry of one model, which may be gone."""
        entries = {entry.name: entry for entry in await self.entries()}
        return entries.get(name) or LibraryEntry(name=name, is_loadable=False, settings={})

    def check_open(self) -> None:
        """Check that models may be loaded and unloaded now.

        Raises:
            NotAllowed, Draining: the operator does not allow it, or the server is shutting down.
        """
        if not self._settings.enable_runtime_loading:
            raise NotAllowed(
                "this server does not load or unload anything while it runs; start it with "
                "--enable-runtime-loading to allow that"
            )
        if self._lifecycle.draining:
            raise Draining("the server is shutting down; send the request to another one")

    def _check_room(self, name: str) -> None:
        others = [status.model for status in self._engine.statuses() if status.model != name]
        if len(others) >= self._settings.models_max:
            raise TooManyModels(
                f"{len(others)} models are loaded and models_max is {self._settings.models_max}; "
                f"unload one of {', '.join(others)}, or raise models_max",
                param="model",
            )

    @staticmethod
    def _ordered(spec: ModelSpec, order: LoadOrder) -> ModelSpec:
        for key in order.settings or {}:
            if key in settings_of_models() and key not in settings_of_clients():
                raise InvalidParameter(
                    f"{key} names files on the server's machine, so only its operator may set it; "
                    "leave it out",
                    param=key,
                )
        return ModelSpec.create(
            spec.ref,
            name=spec.name if order.ref is None else order.model,
            device=order.device or spec.device,
            settings={**spec.settings, **(order.settings or {})},
        )

    def _own_settings(self, name: str) -> dict[str, Any]:
        """The settings in which a loaded model differs from the server's."""
        config = self._engine.config(name)
        if config is None:
            return {}
        return {
            field: getattr(config, field)
            for field in ("device", *settings_of_clients())
            if getattr(config, field) != getattr(self._settings.engine_config, field)
        }

    def _note_failure(self, name: str, load: asyncio.Task[Info]) -> None:
        error = None if load.cancelled() else load.exception()
        if not isinstance(error, EngineError):
            return
        self._failures[name] = replace(Failure.of(error), hint=None)
        if len(self._failures) > _KEPT_FAILURES:
            del self._failures[next(iter(self._failures))]


def _given(spec: ModelSpec | None) -> dict[str, Any]:
    if spec is None:
        return {}
    seen = {key: spec.settings[key] for key in settings_of_clients() if key in spec.settings}
    return {**({} if spec.device is None else {"device": spec.device}), **seen}
