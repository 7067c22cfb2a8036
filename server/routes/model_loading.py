"""`GET /models`, `POST /models/load`, `POST /models/unload`, as llama-server's router has them.

The API key guards them like all routes. If there are admin keys, the two routes that change
something require one of those.
"""

import asyncio
from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from engine.errors import ModelLoadError
from server.dependencies import StateDep, check_admin
from server.http.errors import load_error_response
from server.http.json_route import JsonRoute
from server.http.log_fields import annotate
from server.models.library import LibraryEntry, LoadOrder
from server.models.load_status import status_of
from server.protocol.answers import change_answers, error_answers
from server.protocol.model_loading import (
    LoadableCard,
    LoadableList,
    LoadModelRequest,
    ModelChange,
    UnloadModelRequest,
)

router = APIRouter(route_class=JsonRoute, tags=["models"])

_ADMIN = [Depends(check_admin)]
_ANSWERS = {
    202: {"model": ModelChange, "description": "Begun, with `wait` false."},
    **change_answers("The state of the models does not allow this."),
}


@router.get("/models", summary="List the models that may be loaded", responses=error_answers(401))
async def list_loadable_models(state: StateDep) -> LoadableList:
    """Lists the models that are loaded, in any state, and those that may be loaded."""
    return LoadableList(data=[_card(entry) for entry in await state.library.entries()])


@router.post(
    "/models/load",
    summary="Load a model",
    dependencies=_ADMIN,
    response_model=ModelChange,
    responses=_ANSWERS,
)
async def load_model(
    body: LoadModelRequest, request: Request, state: StateDep, response: Response
) -> Any:
    """Answers once the model serves, or with the reason why it cannot; then nothing of it is left.
    The load continues if the client disconnects: unload the model to end it."""
    order = LoadOrder(model=body.model, ref=body.ref, device=body.device, settings=body.settings)
    name, load = await state.library.load(order)
    annotate(request, model=name)
    if body.wait is False:
        response.status_code = 202
    else:
        try:
            await asyncio.shield(load)
        except ModelLoadError as error:
            return load_error_response(error)
    return ModelChange(model=name, status=status_of(await state.library.entry(name)))


@router.post(
    "/models/unload",
    summary="Unload a model",
    dependencies=_ADMIN,
    response_model=ModelChange,
    responses=_ANSWERS,
)
async def unload_model(
    body: UnloadModelRequest, request: Request, state: StateDep, response: Response
) -> Any:
    """The model takes no new requests from now on. Answers once its requests and its process have
    ended and its memory is free. A model that is still being loaded is removed at once."""
    annotate(request, model=body.model)
    unload = state.library.unload(body.model, body.drain_timeout_s)
    if body.wait is False:
        response.status_code = 202
    else:
        await asyncio.shield(unload)
    return ModelChange(model=body.model, status=status_of(await state.library.entry(body.model)))


def _card(entry: LibraryEntry) -> LoadableCard:
    status = entry.status
    return LoadableCard(
        id=entry.name,
        created=0 if entry.info is None else entry.info.created,
        kind=None if status is None else status.kind,
        loadable=entry.is_loadable,
        settings=dict(entry.settings),
        status=status_of(entry),
    )
