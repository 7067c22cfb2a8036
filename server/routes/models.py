"""`GET /v1/models` and `GET /v1/models/{id}`."""

from typing import Annotated

from fastapi import APIRouter, Path

from engine.types import ModelInfo
from server.catalog import find_model
from server.deps import StateDep
from server.protocol.answers import error_answers
from server.protocol.models import ModelCard, ModelList

router = APIRouter(tags=["models"])

ModelId = Annotated[str, Path(min_length=1, max_length=256, description="Id of a served model.")]


@router.get("/v1/models", summary="List the models", responses=error_answers(401))
async def list_models(state: StateDep) -> ModelList:
    """Those that can be asked now; `/ready` also shows the ones that load."""
    return ModelList(data=[_card(info) for info in state.engine.models()])


@router.get(
    "/v1/models/{model_id:path}",
    summary="Describe a model",
    responses=error_answers(400, 401, 404, 503),
)
async def get_model(model_id: ModelId, state: StateDep) -> ModelCard:
    """Ids may contain slashes."""
    return _card(find_model(state.engine, model_id))


def _card(info: ModelInfo) -> ModelCard:
    return ModelCard(
        id=info.model, created=info.created, max_model_len=info.max_model_len, root=info.model
    )
