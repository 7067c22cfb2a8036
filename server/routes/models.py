"""`GET /v1/models` and `GET /v1/models/{id}`."""

from dataclasses import dataclass
from typing import Literal

from fastapi import APIRouter

from engine.contract.operations import operation_of
from engine.contract.request import Info
from server.catalog import each_name, find_any_model
from server.dependencies import ModelId, StateDep
from server.protocol.answers import error_answers
from server.served import SERVED, AnyCard

router = APIRouter(tags=["models"])


@dataclass(slots=True, kw_only=True)
class ModelList:
    """The models that requests can use now."""

    object: Literal["list"] = "list"
    data: list[AnyCard]


@router.get("/v1/models", summary="List the models", responses=error_answers(401))
async def list_models(state: StateDep) -> ModelList:
    """Lists the models that requests can use now; `/ready` also shows models that are loading."""
    infos = [info for operation in SERVED for info in state.engine.made_for(operation)]
    return ModelList(data=[_card(info) for info in each_name(infos)])


@router.get(
    "/v1/models/{model_id:path}",
    summary="Describe a model",
    responses=error_answers(400, 401, 404, 503),
)
async def get_model(model_id: ModelId, state: StateDep) -> AnyCard:
    """Returns one model's card. Ids may contain slashes."""
    return _card(find_any_model(state.engine, model_id))


def _card(info: Info) -> AnyCard:
    card: AnyCard = SERVED[operation_of(info)].card(info)
    return card
