"""Routes whose body is JSON, read strictly.

FastAPI's own reading takes NaN, lone surrogates and bodies without a content type (which lets any
web page post to a server on localhost); this reads with msgspec, which refuses them all.
"""

from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from engine.errors import InvalidParameter

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class JsonRoute(APIRoute):
    """Use as `APIRouter(route_class=JsonRoute)`.

    Answers 415 to a body that is not declared as JSON and 400 to one that is not JSON.
    """

    def get_route_handler(self) -> Handler:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            if request.method == "POST":
                request = await _JsonRequest.read(request)
            return await handler(request)

        return handle


class _JsonRequest(Request):
    """A request whose body has been decoded."""

    content: Any

    @classmethod
    async def read(cls, request: Request) -> "_JsonRequest":
        if not is_json(request.headers.get("content-type", "")):
            raise HTTPException(415, "the body must be JSON; send Content-Type: application/json")
        read = cls(request.scope, request.receive)
        read.content = _decode(await read.body())
        return read

    async def json(self) -> Any:
        return self.content


def is_json(content_type: str) -> bool:
    """Whether a request's header declares a body of JSON."""
    main, _, sub = content_type.split(";")[0].strip().lower().partition("/")
    return main == "application" and (sub == "json" or sub.endswith("+json"))


def _decode(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # msgspec's text gives the kind of mistake and its byte, not the content.
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise InvalidParameter(f"the body is not valid JSON: {reason}") from None
    except RecursionError:
        raise InvalidParameter("the body is not usable: it is nested too deeply") from None
