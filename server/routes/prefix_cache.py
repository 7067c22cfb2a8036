"""What benchmarks call before they begin: `POST /reset_prefix_cache`, by vLLM's name, and SGLang's
`POST /flush_cache`."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response

from engine.contract.operations import GENERATE
from server.catalog import find_model
from server.dependencies import StateDep, check_may_change
from server.protocol.answers import change_answers

router = APIRouter(tags=["models"])


_CHANGES: dict[str, Any] = {
    "dependencies": [Depends(check_may_change)],
    "responses": change_answers("The model is being unloaded."),
}


@router.post("/reset_prefix_cache", summary="Forget cached prompts", **_CHANGES)
@router.post("/flush_cache", summary="Forget cached prompts, by SGLang's name", **_CHANGES)
async def reset_prefix_cache(
    state: StateDep,
    model: Annotated[
        str | None,
        Query(max_length=256, description="Id of a model; without it all models are meant."),
    ] = None,
) -> Response:
    """Requests that come later find none of the prompts of earlier ones in memory. Running requests
    continue."""
    infos = state.engine.infos(GENERATE) if model is None else [find_model(state.engine, model)]
    for info in infos:
        state.engine.reset_prefix_cache(info.model)
    return Response()
