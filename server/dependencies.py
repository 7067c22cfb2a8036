"""The dependencies and parameters that routes share. The functions are async on purpose: FastAPI
would run a plain one in a thread."""

from typing import Annotated, cast

from fastapi import Depends, Path, Query, Request

from engine.errors import NotAllowed
from server.state import AppState, ClientRequest

ModelId = Annotated[str, Path(min_length=1, max_length=256, description="Id of a served model.")]
ModelName = Annotated[
    str | None,
    Query(max_length=256, description="Id of a served text model, if there are several."),
]


async def get_state(request: Request) -> AppState:
    return cast(AppState, request.app.state.tandem)


StateDep = Annotated[AppState, Depends(get_state)]
"""The state of one running app. `create_app` builds it and keeps it at `app.state.tandem`; there
are no globals."""


async def get_client_request(request: Request, state: StateDep) -> ClientRequest:
    return ClientRequest(request, state)


ClientDep = Annotated[ClientRequest, Depends(get_client_request)]
"""The request to a route that calls an operation."""


async def check_admin(request: Request, state: StateDep) -> None:
    """Require an admin key, if the server has any.

    Raises:
        NotAllowed: the server has admin keys, and the request came without one.
    """
    if not ClientRequest(request, state).may_manage:
        raise NotAllowed("this needs an admin key; send one as Authorization: Bearer KEY")


async def check_may_change(request: Request, state: StateDep) -> None:
    """Require what loading a model requires, for routes that take no body: a page of another site
    could call them, but the browser's headers show that.

    Raises:
        NotAllowed, Draining: as in `ModelLibrary.load`, or a page of another site asks.
    """
    await check_admin(request, state)
    state.library.check_open()
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise NotAllowed("pages of other sites may not change what the server keeps in memory")
