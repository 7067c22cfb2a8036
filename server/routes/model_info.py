"""`GET /get_model_info`: facts that SGLang's clients ask of a server with one model."""

from dataclasses import dataclass

from fastapi import APIRouter

from engine.contract.generate import ModelInfo
from server.catalog import find_any_model, find_model
from server.dependencies import ModelName, StateDep
from server.protocol.answers import error_answers

router = APIRouter(tags=["models"])


@dataclass(slots=True, kw_only=True)
class AskedModel:
    """A model by SGLang's names."""

    model_path: str
    """The model's id; paths of this machine stay private."""
    tokenizer_path: str
    is_generation: bool
    weight_version: str
    """Digest of the model's files."""


@router.get(
    "/get_model_info", summary="Describe a model", responses=error_answers(400, 401, 404, 503)
)
@router.get("/model_info", include_in_schema=False)
async def get_model_info(state: StateDep, model: ModelName = None) -> AskedModel:
    """Describes a model with SGLang's names; `?model=` names one if several are served."""
    info = find_any_model(state.engine, model) if model else find_model(state.engine, None)
    return AskedModel(
        model_path=info.name,
        tokenizer_path=info.name,
        is_generation=isinstance(info, ModelInfo),
        weight_version=info.digest,
    )
