"""`POST /v1/load_lora_adapter` and `POST /v1/unload_lora_adapter`, as vLLM has them."""

import asyncio
from typing import Any

from fastapi import APIRouter, Depends, Request

from engine.errors import ModelLoadError, UnknownAdapter
from server.catalog import find_any_model, find_model
from server.dependencies import StateDep, check_admin
from server.http.errors import load_error_response
from server.http.json_route import JsonRoute
from server.http.log_fields import annotate
from server.protocol.adapter_loading import (
    LoadAdapterRequest,
    LoadedAdapter,
    UnloadAdapterRequest,
    UnloadedAdapter,
)
from server.protocol.answers import change_answers

router = APIRouter(route_class=JsonRoute, tags=["models"], dependencies=[Depends(check_admin)])

_ANSWERS = change_answers("The models and adapters that are served do not allow this.")


@router.post(
    "/v1/load_lora_adapter",
    summary="Load a LoRA adapter",
    response_model=LoadedAdapter,
    responses=_ANSWERS,
)
async def load_adapter(body: LoadAdapterRequest, request: Request, state: StateDep) -> Any:
    """Answers once requests can use the adapter, or with the reason why they cannot; then nothing
    has changed. Streams continue meanwhile. The load also continues if the client disconnects."""
    state.library.check_open()
    if body.model:
        model = find_any_model(state.engine, body.model).model
    else:
        model = find_model(state.engine, None).model
    annotate(request, model=model)
    try:
        load = await state.library.load_adapter(
            model, body.lora_name, body.lora_path, replaces=body.load_inplace is True
        )
        report = await asyncio.shield(load)
    except ModelLoadError as error:
        return load_error_response(error)
    return LoadedAdapter(
        lora_name=body.lora_name,
        model=model,
        num_layers=report.num_layers,
        ranks=list(report.ranks),
        num_left_out=report.num_left_out,
        left_out=list(report.left_out),
    )


@router.post(
    "/v1/unload_lora_adapter",
    summary="Unload a LoRA adapter",
    response_model=UnloadedAdapter,
    responses=_ANSWERS,
)
async def unload_adapter(body: UnloadAdapterRequest, request: Request, state: StateDep) -> Any:
    """The adapter takes no new requests from now on. Answers once its running requests have ended
    and its place is free."""
    state.library.check_open()
    model = find_any_model(state.engine, body.lora_name).model
    annotate(request, model=model)
    if body.model not in (None, model):
        raise UnknownAdapter(
            f"adapter {body.lora_name!r} belongs to model {model!r}, not to the named one; name "
            "that model, or leave model out",
            param="lora_name",
        )
    unload = await state.library.unload_adapter(model, body.lora_name)
    unload.add_done_callback(lambda _: state.metrics.forget(model, body.lora_name))
    await asyncio.shield(unload)
    return UnloadedAdapter(lora_name=body.lora_name, model=model)
