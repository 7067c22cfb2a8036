"""The dependencies of routes. They are async on purpose: FastAPI would run a plain function in a
thread."""

from typing import Annotated, cast

from fastapi import Depends, Request

from server.state import AppState


async def get_state(request: Request) -> AppState:
    return cast(AppState, request.app.state.tandem)


StateDep = Annotated[AppState, Depends(get_state)]
