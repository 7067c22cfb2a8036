"""Probes and identity: whether the process lives and serves, and its version."""

from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Response

from engine.contract.status import ModelStatus, Phase
from engine.version import __version__
from server.catalog import unknown_model
from server.dependencies import ModelId, StateDep
from server.protocol.answers import error_answers

router = APIRouter(tags=["operations"])


@router.get("/v1/health", include_in_schema=False)
@router.get("/health")
async def get_health() -> dict[str, str]:
    """Answers 200 while the process lives, whatever the models do."""
    return {"status": "ok"}


@router.api_route("/ping", methods=["GET", "POST"], include_in_schema=False)
async def ping() -> Response:
    """`/health` without a body, by the name that SageMaker and vLLM use."""
    return Response()


@router.get("/load", summary="Requests in flight", responses=error_answers(401))
async def get_load(state: StateDep) -> dict[str, int]:
    """Returns how many requests wait or run at all models together, as vLLM's `server_load`."""
    return {"server_load": state.admission.num_requests}


@router.get(
    "/ready",
    responses={503: {"description": "Loading, restarting, draining, or no model could be loaded."}},
)
async def get_ready(state: StateDep, response: Response) -> dict[str, Any]:
    """Answers 200 while every model that could be loaded is served, otherwise 503 with the phase
    and progress. `failed` names the models that could not be loaded; with `--require-all` they make
    it 503. Models that are loaded or unloaded later do not count while others serve."""
    statuses = state.engine.statuses()
    readiness = state.lifecycle.readiness(statuses)
    _set_head(response, ready=readiness.serving)
    return {
        "phase": readiness.phase,
        "progress": readiness.progress,
        "failed": [status.model for status in statuses if status.phase is Phase.FAILED],
        "models": [_state_of(status) for status in statuses],
    }


@router.get(
    "/ready/{model_id:path}",
    responses=error_answers(400, 404)
    | {503: {"description": "Loading, failed, restarting or draining."}},
)
async def get_model_ready(model_id: ModelId, state: StateDep, response: Response) -> dict[str, Any]:
    """Answers 200 while this model is served or sleeps, otherwise 503 with its phase, and with the
    reason if it failed. Ids may contain slashes."""
    statuses = state.engine.statuses()
    status = next((status for status in statuses if status.model == model_id), None)
    if status is None:
        raise unknown_model(state.engine, model_id)
    if state.lifecycle.draining:
        status = replace(status, phase=Phase.DRAINING)
    _set_head(response, ready=status.is_asleep or status.phase is Phase.READY)
    return _state_of(status)


@router.get("/version")
async def get_version() -> dict[str, str]:
    return {"version": __version__}


def _set_head(response: Response, *, ready: bool) -> None:
    response.status_code = 200 if ready else 503
    response.headers["Cache-Control"] = "no-store"


def _state_of(status: ModelStatus) -> dict[str, Any]:
    """A model's state, field by field, because the hint is not for clients."""
    return {
        "model": status.model,
        "phase": status.phase,
        "progress": status.progress,
        "detail": status.news,
        "error_code": None if status.failure is None else status.failure.code,
        "restarts": status.restarts,
    }
