"""The routes by which models sleep and wake: vLLM's, llama-swap's, llama-server's events, and a
pin.

Those that change something need the same key as those of `server.routes.model_loading`.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from engine.contract.status import ModelStatus, Phase
from server.catalog import unknown_model
from server.dependencies import StateDep, check_may_change
from server.http.json_route import JsonRoute
from server.http.shape import encode
from server.http.sse import OPENAI_FRAMING, EventStream, event, until_disconnect
from server.models.load_status import VALUES, status_of
from server.protocol.answers import change_answers, error_answers
from server.protocol.model_loading import ModelChange
from server.protocol.sleeping import PinRequest, Running, RunningList, Sleeping
from server.state import AppState

_POLL_S = 0.2
_STATES = {Phase.READY: "ready", Phase.DRAINING: "stopping"}
"""llama-swap's names of phases; other phases of models that hold memory are its `starting`."""
_HOLDS_NOTHING = (Phase.SLEEPING, Phase.FAILED, Phase.STOPPED)

ModelId = Annotated[
    str | None,
    Query(max_length=256, description="Id of a model; without it all models are meant."),
]


router = APIRouter(tags=["models"])
pins = APIRouter(tags=["models"], route_class=JsonRoute)
_ANSWERS = change_answers("A model that was named is pinned, or is being unloaded.")
_CHANGES: dict[str, Any] = {
    "dependencies": [Depends(check_may_change)],
    "responses": _ANSWERS,
}


@router.post("/sleep", summary="Put models to sleep", **_CHANGES)
async def sleep(
    state: StateDep,
    model: ModelId = None,
    level: Annotated[
        int, Query(ge=1, le=2, description="vLLM's level; 2 also ends the models' processes.")
    ] = 1,
) -> Response:
    """Answers once the models have finished what they do and their memory is free. Pinned models
    stay awake unless they are named, which is a 409. A request wakes a sleeping model."""
    await _put_to_sleep(state, model, deep=level == 2)
    return Response()


@router.post("/wake_up", summary="Wake models", **_CHANGES)
async def wake_up(
    request: Request,
    state: StateDep,
    model: ModelId = None,
    tags: Annotated[
        list[str] | None,
        Query(max_length=2, description="vLLM's tags; a model always wakes as a whole."),
    ] = None,
) -> Response:
    """Answers once the models serve. Models that do not fit into memory together put each other to
    sleep."""
    for status in _meant(state, model):
        if status.is_asleep:
            await until_disconnect(request.receive, state.engine.wake(status.model))
    return Response()


@router.get("/is_sleeping", summary="Whether models sleep", responses=error_answers(401, 404))
async def is_sleeping(state: StateDep, model: ModelId = None) -> Sleeping:
    """True if the model sleeps, or all of them if none is named."""
    return Sleeping(all(status.is_asleep for status in _meant(state, model)))


@router.get("/running", summary="List the models in memory", responses=error_answers(401))
async def list_running(state: StateDep) -> RunningList:
    """Lists the models that hold memory, as llama-swap does."""
    return RunningList(
        [
            Running(status.model, _STATES.get(status.phase, "starting"))
            for status in state.engine.statuses()
            if status.phase not in _HOLDS_NOTHING
        ]
    )


@router.post("/api/models/unload", summary="Put all models to sleep", **_CHANGES)
async def unload_all(state: StateDep) -> Response:
    """llama-swap's name for `/sleep`."""
    await _put_to_sleep(state, None, deep=True)
    return Response("OK", media_type="text/plain")


@router.post("/api/models/unload/{model_id:path}", summary="Put a model to sleep", **_CHANGES)
async def unload_one(
    model_id: Annotated[str, Path(min_length=1, max_length=256, description="Id of a model.")],
    state: StateDep,
) -> Response:
    """llama-swap's name for `/sleep` with a model."""
    await _put_to_sleep(state, model_id, deep=True)
    return Response("OK", media_type="text/plain")


@pins.post(
    "/models/pin",
    summary="Pin a model",
    response_model=ModelChange,
    dependencies=_CHANGES["dependencies"],
    responses=_ANSWERS,
)
async def pin_model(body: PinRequest, state: StateDep) -> ModelChange:
    """A pinned model is never put to sleep, until it is unpinned or the server ends."""
    state.engine.pin(body.model, body.pinned)
    return ModelChange(model=body.model, status=status_of(await state.library.entry(body.model)))


@router.get("/models/sse", summary="Follow the models", responses=error_answers(401))
async def follow_models(state: StateDep) -> Response:
    """Sends an event for each change of a model's state and progress, as llama-server does; first
    the states of all models."""

    async def close() -> None:
        pass

    return EventStream(
        _news(state),
        close,
        heartbeat_s=state.settings.heartbeat_interval_s,
        headers={},
        framing=replace(OPENAI_FRAMING, done=b""),
    )


async def _news(state: AppState) -> AsyncGenerator[bytes, None]:
    told: dict[str, dict[str, Any]] = {}
    while not state.lifecycle.draining:
        current = {status.model: _facts(status) for status in state.engine.statuses()}
        gone = {model: {"status": "unloaded"} for model in told.keys() - current.keys()}
        for model, facts in {**current, **gone}.items():
            if told.get(model) != facts:
                is_fetched = facts["status"] == "downloading"
                kind = "download_progress" if is_fetched else "model_status"
                yield event(encode({"model": model, "event": kind, "data": facts}))
        told = current
        await asyncio.sleep(_POLL_S)


def _facts(status: ModelStatus) -> dict[str, Any]:
    facts: dict[str, Any] = {"status": VALUES.get(status.phase, "loading")}
    if status.progress is not None:
        facts["progress"] = {"stage": status.phase.value, "value": round(status.progress, 2)}
    if status.failure is not None:
        facts |= {"failed": True, "error": status.failure.message}
    return facts


def _meant(state: AppState, model: str | None) -> Sequence[ModelStatus]:
    """The states of the model of that id, or of all models.

    Raises:
        UnknownModel: there is none of that id.
    """
    found = [status for status in state.engine.statuses() if model in (None, status.model)]
    if model is not None and not found:
        raise unknown_model(state.engine, model)
    return found


async def _put_to_sleep(state: AppState, model: str | None, *, deep: bool) -> None:
    meant = [status for status in _meant(state, model) if model is not None or not status.pinned]
    chosen = [status.model for status in meant if deep or not status.is_asleep]
    sleeping = [state.engine.sleep(name, deep=deep) for name in chosen]
    await asyncio.gather(*map(asyncio.shield, sleeping))
