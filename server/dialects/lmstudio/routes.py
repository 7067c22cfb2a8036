"""LM Studio's routes for models, `/api/v1/models/...`.

A model has one instance, whose id is the model's. Unloading puts it to sleep: LM Studio's clients
expect a request to load it again.
"""

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Depends, Request

from engine.contract.embed import EmbeddingModelInfo
from engine.contract.generate import ModelInfo
from engine.contract.request import Info
from engine.errors import ModelLoadError
from server.dependencies import StateDep, check_admin
from server.dialects.dialect import Dialect
from server.dialects.lmstudio.protocol import LoadRequest, UnloadRequest
from server.http.errors import load_error_response, openai_shape
from server.http.json_route import JsonRoute
from server.http.log_fields import annotate
from server.models.library import LibraryEntry, LoadOrder
from server.models.load_status import status_of
from server.protocol.answers import change_answers, error_answers
from server.state import AppState

router = APIRouter(route_class=JsonRoute, tags=["LM Studio"], prefix="/api/v1/models")

_CHANGES: dict[str, Any] = {
    "dependencies": [Depends(check_admin)],
    "responses": change_answers("The state of the model does not allow this."),
}
_AWAKE = ("loaded", "unloading")


@router.get("", summary="List models, as LM Studio does", responses=error_answers(401))
async def list_models(state: StateDep) -> dict[str, Any]:
    """Lists the text and embedding models that are served or may be loaded."""
    entries = await state.library.entries()
    return {"models": [_card(entry) for entry in entries if _type(entry) is not None]}


@router.post("/load", summary="Load a model, as LM Studio does", **_CHANGES)
async def load(body: LoadRequest, request: Request, state: StateDep) -> Any:
    """Answers once the model serves. The load continues if the client disconnects."""
    annotate(request, model=body.model)
    began_s, name = time.monotonic(), body.model
    if not await _is_awake(state, name):
        settings = {"max_model_len": body.context_length} if body.context_length else None
        wakes = state.engine.is_asleep(name)
        order = LoadOrder(model=name, settings=None if wakes else settings)
        name, loading = await state.library.load(order)
        try:
            await asyncio.shield(loading)
        except ModelLoadError as error:
            return load_error_response(error)
    entry = await state.library.entry(name)
    answer = {
        "type": _type(entry),
        "instance_id": name,
        "status": "loaded",
        "load_time_seconds": round(time.monotonic() - began_s, 3),
    }
    return {**answer, "load_config": _config(entry.info)} if body.echo_load_config else answer


@router.post("/unload", summary="Free a model's memory, as LM Studio does", **_CHANGES)
async def unload(body: UnloadRequest, request: Request, state: StateDep) -> dict[str, str]:
    """Answers once the model has finished what it does and its process has ended."""
    annotate(request, model=body.instance_id)
    state.library.check_open()
    await asyncio.shield(state.engine.sleep(body.instance_id, deep=True))
    return {"instance_id": body.instance_id}


async def _is_awake(state: AppState, name: str) -> bool:
    return status_of(await state.library.entry(name)).value in _AWAKE


def _card(entry: LibraryEntry) -> dict[str, Any]:
    info = entry.info
    is_awake = status_of(entry).value in _AWAKE
    card = {
        "type": _type(entry),
        "publisher": "tandem",
        "key": entry.name,
        "display_name": entry.name,
        "loaded_instances": [{"id": entry.name, "config": _config(info)}] if is_awake else [],
    }
    if info is None:
        return card
    return {
        **card,
        "architecture": info.architecture,
        "quantization": {"name": info.weight_type or info.dtype, "bits_per_weight": _bits(info)},
        "size_bytes": info.file_bytes,
        "max_context_length": _context(info),
        "format": info.file_format or None,
        "capabilities": {"vision": bool(getattr(info, "pictures", None))},
    }


def _config(info: Info | None) -> dict[str, Any]:
    return {"context_length": _context(info)}


def _context(info: Info | None) -> int | None:
    return info.max_model_len if isinstance(info, ModelInfo | EmbeddingModelInfo) else None


def _bits(info: Info) -> float | None:
    return round(8 * info.file_bytes / info.num_weights, 2) if info.num_weights else None


def _type(entry: LibraryEntry) -> str | None:
    """LM Studio's word for the kind of model; None for kinds that it does not have."""
    kind = None if entry.status is None else entry.status.kind
    if isinstance(entry.info, EmbeddingModelInfo) or kind == "embedding":
        return "embedding"
    return "llm" if isinstance(entry.info, ModelInfo) or kind in ("text", None) else None


LMSTUDIO = Dialect(router=router, failures=("/api/v1/", openai_shape), bodies={})
"""Its row comes before Ollama's, whose paths begin with `/api/`."""
