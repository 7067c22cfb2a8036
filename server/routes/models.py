"""`GET /v1/models` and `GET /v1/models/{id}`."""

from typing import Annotated

from fastapi import APIRouter, Path

from engine.image_types import ImageModelInfo
from engine.kinds import KINDS
from engine.types import Info, ModelInfo
from server.http.catalog import find_any_model
from server.protocol.answers import error_answers
from server.protocol.models import ImageModelCard, ModelCard, ModelList
from server.routes.deps import StateDep

router = APIRouter(tags=["models"])

ModelId = Annotated[str, Path(min_length=1, max_length=256, description="Id of a served model.")]


@router.get("/v1/models", summary="List the models", responses=error_answers(401))
async def list_models(state: StateDep) -> ModelList:
    """Those that can be asked now; `/ready` also shows the ones that load."""
    infos = [info for kind in KINDS.values() for info in state.engine.infos(kind)]
    return ModelList(data=[_card(info) for info in infos])


@router.get(
    "/v1/models/{model_id:path}",
    summary="Describe a model",
    responses=error_answers(400, 401, 404, 503),
)
async def get_model(model_id: ModelId, state: StateDep) -> ModelCard | ImageModelCard:
    """One model's card. Ids may contain slashes."""
    return _card(find_any_model(state.engine, model_id))


def _card(info: Info) -> ModelCard | ImageModelCard:
    if isinstance(info, ImageModelInfo):
        return _image_card(info)
    assert isinstance(info, ModelInfo)
    return ModelCard(
        id=info.model, created=info.created, max_model_len=info.max_model_len, root=info.model
    )


def _image_card(info: ImageModelInfo) -> ImageModelCard:
    return ImageModelCard(
        id=info.model,
        created=info.created,
        root=info.model,
        architecture=info.architecture,
        tasks=list(info.tasks),
        guidance=info.guidance,
        schedulers=list(info.schedulers),
        default_scheduler=info.default_scheduler,
        default_size=f"{info.default_width}x{info.default_height}",
        default_steps=info.default_steps,
        default_guidance_scale=info.default_guidance_scale,
        default_edit_guidance_scale=info.default_edit_guidance_scale,
        size_multiple=info.size_multiple,
        min_side=info.min_side,
        max_pixels=info.max_pixels,
    )
