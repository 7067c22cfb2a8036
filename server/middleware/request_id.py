"""Gives every request an id: the client's own if it is valid, a new one otherwise.

The id is in `request.state.request_id`, in every log line of the request, and in the answer's
`X-Request-Id`. Clients may repeat one, so it does not serve as the engine's request id. Where the
request came from is noted here, too, because everything else runs inside this middleware.
"""

import re
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from server.http.owner import note_address
from server.http.scope import get_header

_SANE = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


class RequestIdMiddleware:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        note_address(scope)
        given = get_header(scope, b"x-request-id")
        request_id = given if given and _SANE.fullmatch(given) else uuid4().hex.encode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"x-request-id", request_id)]
                message = {**message, "headers": headers}
            await send(message)

        scope.setdefault("state", {})["request_id"] = request_id.decode()
        with bound_contextvars(request_id=request_id.decode()):
            await self.app(scope, receive, send_with_id)
