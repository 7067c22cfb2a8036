"""Models that are loaded by the first request that needs them: `FirstUse`.

A model that did not fit at the start sleeps and nothing is known of it yet. Its first request wakes
it here; later ones wait in the model's own queue (`engine.worker.wake_queue`).

A new server offers more than most people ever use, so the default model of an operation
(`server.http.served_operation.ServedOperation.default_model`) is fetched and loaded by the first
request that needs it. That request waits; the server's start does not.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from engine.contract.kinds import KINDS, kind_for
from engine.contract.model_spec import ModelSpec
from engine.contract.operations import EMBED, GENERATE, AnyOperation, Operation
from engine.contract.request import Info, InfoT
from engine.contract.status import Phase
from engine.errors import EngineError, ModelNotReady, TooManyModels, UnknownModel
from engine.worker.client import EngineClient
from server.catalog import find_offering, served_names
from server.served import SERVED
from server.settings import Settings

RETRY_S = 30.0
"""Seconds before a failed load is tried again: each try may ask a package index."""


class FirstUse:
    """Loads the models of one app on first use. Event loop only."""

    def __init__(
        self,
        settings: Settings,
        engine: EngineClient,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._clock = clock
        self._loads: dict[str, asyncio.Task[Info]] = {}
        self._begun: set[str] = set()
        """Models that were loaded here and not by the operator."""
        self._failures: dict[str, tuple[float, EngineError]] = {}

    def offered(self, operation: AnyOperation) -> list[str]:
        """Models that a request for this operation may load, its default model first."""
        served = SERVED[operation]
        if not self._settings.load_on_first_use or served.default_model is None:
            return []
        return [served.default_model, *served.other_models]

    async def find(self, operation: Operation[Any, Any, InfoT], name: str | None) -> InfoT:
        """The ready model of that id that offers the operation, as `server.catalog.find_offering`
        finds it. A model that is offered on first use is loaded first. A waiting request may be
        cancelled: the load continues.

        Raises:
            ModelNotReady: the default model could not be loaded, and why.
            TooManyModels: as many models are loaded as `models_max` allows.
            UnknownModel: the message also names models that would be loaded.
            EngineError: as in `find_offering`.
        """
        meant = name or self._meant(operation)
        await self.wake(operation, meant)
        is_absent = meant in self._loads or self._phase(meant) in (None, Phase.FAILED)
        if meant is not None and meant in self.offered(operation) and is_absent:
            await self._load(meant)
        try:
            return find_offering(self._engine, operation, meant)
        except UnknownModel as error:
            if not (offered := self.offered(operation)):
                raise
            also = f"{error.message}; these are loaded on first use: {', '.join(offered)}"
            raise UnknownModel(also, param=error.param) from None

    def _meant(self, operation: AnyOperation) -> str | None:
        """The model that a request without a name means: the only model that the operator serves
        or, if there is none, the default one; never one that another request has loaded. None:
        there is a choice, or nothing to load."""
        ready = {info.model for info in self._engine.infos(operation)}
        if SERVED[operation].default_model is None:
            served = served_names(self._engine, operation)
            return served[0] if len(served) == 1 else None
        served = [
            status.model
            for status in self._engine.statuses()
            if (status.kind == kind_for(operation).name or status.model in ready)
            and status.phase is not Phase.FAILED
            and status.model not in self._begun
        ]
        if served:
            return served[0] if len(served) == 1 else None
        return next(iter(self.offered(operation)), None)

    async def wake(self, operation: AnyOperation, name: str | None) -> None:
        """Wake a sleeping model that has not served yet, if a request for it may succeed."""
        known = {info.model for info in self._engine.models()}
        for status in self._engine.statuses():
            config = self._engine.config(status.model)
            names = [status.model, *(config.adapters if config is not None else ())]
            if status.is_asleep and status.model not in known and name in names:
                main = None if status.kind is None else KINDS[status.kind].main
                embeds = main is GENERATE and operation is EMBED
                if main in (operation, None) or embeds:
                    await self._engine.wake(status.model)

    def _phase(self, model: str | None) -> Phase | None:
        phases = [status.phase for status in self._engine.statuses() if status.model == model]
        return phases[0] if phases else None

    async def _load(self, model: str) -> None:
        load = self._loads.get(model)
        if load is None:
            load = self._loads[model] = self._begin(model)
            load.add_done_callback(lambda done: self._end(model, done))
        try:
            await asyncio.shield(load)
        except EngineError as error:
            raise _not_loaded(model, error) from error

    def _begin(self, model: str) -> "asyncio.Task[Info]":
        failed_s, error = self._failures.get(model, (0.0, None))
        if error is not None and self._clock() - failed_s < RETRY_S:
            raise _not_loaded(model, error)
        others = [status.model for status in self._engine.statuses() if status.model != model]
        if len(others) >= self._settings.models_max:
            raise TooManyModels(
                f"{model} is loaded on first use, but {len(others)} models are loaded already and "
                f"models_max is {self._settings.models_max}; unload one, or raise models_max",
                param="model",
            )
        load = self._engine.load(self._settings.complete(ModelSpec.create(model)))
        self._begun.add(model)
        return load

    def _end(self, model: str, load: "asyncio.Task[Info]") -> None:
        del self._loads[model]
        error = None if load.cancelled() else load.exception()
        if isinstance(error, EngineError):
            self._failures[model] = (self._clock(), error)
        else:
            self._failures.pop(model, None)


def _not_loaded(model: str, error: EngineError) -> ModelNotReady:
    """The error for a failed load: the reason without its hint, which is for the operator."""
    failed = ModelNotReady(
        f"model {model} is loaded on first use, and loading it failed: {error.message}",
        param="model",
    )
    failed.retry_after_s = int(RETRY_S)
    return failed
