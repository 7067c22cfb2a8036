"""What routes may ask for. Async on purpose: FastAPI would run a plain function in a thread."""

from typing import Annotated, cast

from fastapi import Depends, Request

from server.state import AppState


async def get_state(request: Request) -> AppState:
    return cast(AppState, request.app.state.tandem)


async def get_request_id(request: Request) -> str:
    """The id of this HTTP request, as in its `X-Request-Id` answer header. Clients may repeat one,
    so it does not serve as the engine's request id."""
    return cast(str, request.state.request_id)


StateDep = Annotated[AppState, Depends(get_state)]
RequestIdDep = Annotated[str, Depends(get_request_id)]
