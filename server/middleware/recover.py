"""The last line against exceptions that no handler knows: a 500 in the usual shape, logged once."""

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.errors import engine_error_response, log_unexpected


class RecoverMiddleware:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def send_and_look(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, send_and_look)
        except ClientDisconnect:
            return
        except Exception as error:
            if started:
                # Too late for an answer: the web server logs it and breaks the connection.
                raise
            log_unexpected(error)
            await engine_error_response(error)(scope, receive, send)
