"""`POST /start_profile` and `/stop_profile`, by vLLM's and SGLang's names."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response

from engine.errors import UnsupportedFeature
from server.catalog import unknown_model
from server.dependencies import StateDep, check_may_change
from server.protocol.answers import change_answers
from server.state import AppState

ModelId = Annotated[
    str | None,
    Query(max_length=256, description="Id of a model; without it all models are meant."),
]

router = APIRouter(tags=["models"])
_CHANGES: dict[str, Any] = {
    "dependencies": [Depends(check_may_change)],
    "responses": change_answers("The model is being unloaded."),
}


@router.post("/start_profile", summary="Begin to profile steps", **_CHANGES)
async def start_profile(state: StateDep, model: ModelId = None) -> Response:
    """From now on the workers' steps are profiled, at most `max_iterations` of the server's
    `profiler_config`."""
    _switch(state, model, on=True)
    return Response()


@router.post("/stop_profile", summary="Write the profile", **_CHANGES)
async def stop_profile(state: StateDep, model: ModelId = None) -> Response:
    """The workers write their traces into `torch_profiler_dir` after the step that runs; the log
    says when that is done. There is none if nothing was profiled."""
    _switch(state, model, on=False)
    return Response()


def _switch(state: AppState, model: str | None, *, on: bool) -> None:
    served = [status.model for status in state.engine.statuses()]
    if model is not None and model not in served:
        raise unknown_model(state.engine, model)
    meant = [
        one
        for one in (served if model is None else [model])
        if (config := state.engine.config(one)) is not None and config.profiler_config is not None
    ]
    if not meant:
        raise UnsupportedFeature("nothing can be profiled; the operator has to set profiler_config")
    for one in meant:
        state.engine.profile(one, on=on)
