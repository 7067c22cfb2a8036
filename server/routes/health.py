"""Probes and identity: is the process alive, does it serve, which version is it."""

from typing import Any

from fastapi import APIRouter, Response

from engine.version import __version__
from server.deps import StateDep

router = APIRouter(tags=["operations"])


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def get_health() -> dict[str, str]:
    """200 while the process lives, whatever the models do."""
    return {"status": "ok"}


@router.head("/ready", include_in_schema=False)
@router.get(
    "/ready",
    responses={503: {"description": "Loading, failed, restarting or draining."}},
)
async def get_ready(state: StateDep, response: Response) -> dict[str, Any]:
    """200 while all models are served, 503 with the phase and progress otherwise."""
    statuses = state.engine.statuses()
    readiness = state.lifecycle.readiness(statuses)
    response.status_code = 200 if readiness.serving else 503
    response.headers["Cache-Control"] = "no-store"
    return {
        "phase": readiness.phase,
        "progress": readiness.progress,
        "models": [
            {
                "model": status.model,
                "phase": status.phase,
                "progress": status.progress,
                "detail": status.detail,
                "error_code": status.error_code,
                "restarts": status.restarts,
            }
            for status in statuses
        ],
    }


@router.get("/version")
async def get_version() -> dict[str, str]:
    return {"version": __version__}
