"""Served models in Anthropic's form, for clients that ask as Anthropic's do."""

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import Scope

from engine.contract.generate import ModelInfo
from engine.contract.operations import GENERATE
from server.catalog import each_name, find_model
from server.dependencies import ModelId, StateDep


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
    models = [_described(info) for info in each_name(state.engine.infos(GENERATE))]
    ids = [model["id"] for model in models]
    ends = {"first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None}
    return {"data": models, "has_more": False, **ends}


@router.get("/v1/models/{model_id:path}")
async def get_model(model_id: ModelId, state: StateDep) -> dict[str, Any]:
    """Describes one model."""
    return _described(find_model(state.engine, model_id))


def _described(info: ModelInfo) -> dict[str, Any]:
    return {
        "type": "model",
        "id": info.name,
        "display_name": info.name,
        "created_at": datetime.fromtimestamp(info.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "max_input_tokens": info.max_model_len,
        "max_tokens": info.max_model_len - 1,
    }
