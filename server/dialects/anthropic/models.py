"""Served models in Anthropic's form, for clients that ask as Anthropic's do."""

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import Scope

from engine.contract.generate import ModelInfo
from engine.contract.operations import GENERATE
from server.catalog import find_model
from server.dependencies import ModelId, StateDep
from server.state import AppState


class _AnthropicsRoute(APIRoute):
    """A route only for Anthropic's clients, which send a version in a header: OpenAI has the same
    path."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if not any(name == b"anthropic-version" for name, _ in scope.get("headers", ())):
            return Match.NONE, {}
        return super().matches(scope)


router = APIRouter(route_class=_AnthropicsRoute, include_in_schema=False)


@router.get("/v1/models")
async def list_models(state: StateDep) -> dict[str, Any]:
    """Lists all models on one page."""
    models = [_described(info) for info in _infos(state)]
    ids = [model["id"] for model in models]
    ends = {"first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None}
    return {"data": models, "has_more": False, **ends}


@router.get("/v1/models/{model_id:path}")
async def get_model(model_id: ModelId, state: StateDep) -> dict[str, Any]:
    """Describes one model."""
    return _described(find_model(state.engine, model_id))


def _infos(state: AppState) -> list[ModelInfo]:
    """One entry for each name that requests can use."""
    named = [info.named(name) for info in state.engine.infos(GENERATE) for name in info.names]
    return [info for info in named if info is not None]


def _described(info: ModelInfo) -> dict[str, Any]:
    return {
        "type": "model",
        "id": info.name,
        "display_name": info.name,
        "created_at": datetime.fromtimestamp(info.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "max_input_tokens": info.max_model_len,
        "max_tokens": info.max_model_len - 1,
    }
