"""Routes whose body is JSON, read strictly.

FastAPI's own reading accepts NaN, lone surrogates and bodies without a content type (which would
let any web page post to a server on localhost). This one reads with msgspec, which refuses them
all.
"""

import asyncio
import gc
import math
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from engine.errors import InvalidParameter

MAX_VALUES = 5 << 18
"""Values in a body, estimated by its commas: more than the longest prompt of token ids has."""
MAX_FLOATS = 1 << 15
"""Numbers with a point or an exponent: each takes twenty times as long to read as an integer. A
long one counts as several."""
_USUAL_FLOAT = 24
"""Characters that count as one such number."""
MAX_NAMED = MAX_CONTAINERS = 1 << 18
"""Values with a name, and arrays and objects. Decoding the maximum of either takes a tenth of a
second, during which no other request is served."""
MAX_STRINGS = 1 << 17
"""Strings, names included: twice as many as the longest conversation has."""
_FEW = 1 << 16
"""Commas that prove a body small: it has at most about as many of anything else."""
_WINDOW = 1 << 16
_LONG = 1 << 18
"""Bytes of a body that takes so long that others get a turn in between."""

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class JsonRoute(APIRoute):
    """Use as `APIRouter(route_class=JsonRoute)`.

    Answers 415 to a body that is not declared as JSON, or is compressed, and 400 to one that is
    not JSON.
    """

    def get_route_handler(self) -> Handler:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            if request.method == "POST":
                self.check_declared(request)
                _check_plain(request)
                request = await _JsonRequest.read(request)
            return await handler(request)

        return handle

    def check_declared(self, request: Request) -> None:
        """Check the content type.

        Raises:
            HTTPException: the body is not declared as JSON.
        """
        if not is_json(request.headers.get("content-type", "")):
            raise HTTPException(415, "the body must be JSON; send Content-Type: application/json")


def _check_plain(request: Request) -> None:
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        raise HTTPException(
            415, "compressed bodies are not accepted here; send it without Content-Encoding"
        )


class _JsonRequest(Request):
    """A request whose body has been decoded."""

    content: Any

    @classmethod
    async def read(cls, request: Request) -> "_JsonRequest":
        read = cls(declared_json(request.scope), request.receive)
        body = await read.body()
        is_long = len(body) > _LONG
        if is_long:
            await asyncio.sleep(0)  # joining the body took milliseconds, and decoding will
        read.content = _decode(body)
        if is_long:
            await asyncio.sleep(0)
        return read

    async def json(self) -> Any:
        return self.content


def declared_json(scope: Scope) -> Scope:
    """The same request with a header that makes FastAPI treat its body as JSON."""
    headers = [item for item in scope["headers"] if item[0] != b"content-type"]
    return {**scope, "headers": [*headers, (b"content-type", b"application/json")]}


def is_json(content_type: str) -> bool:
    """Whether a request's header declares a JSON body."""
    main, _, sub = content_type.split(";")[0].strip().lower().partition("/")
    return main == "application" and (sub == "json" or sub.endswith("+json"))


def _decode(body: bytes) -> Any:
    _check_amount(body)
    collects = gc.isenabled()
    gc.disable()  # it would walk the new objects again and again and find nothing to free
    try:
        return msgspec.json.Decoder(float_hook=_Floats().read).decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # msgspec's message names the mistake and its byte, not the content.
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise InvalidParameter(f"the body is not valid JSON: {reason}") from None
    except RecursionError:
        raise InvalidParameter(
            "the body cannot be used: it is nested too deeply; nest it less deeply"
        ) from None
    finally:
        if collects:
            gc.enable()


class _Floats:
    """Reads and counts the floating-point numbers of one body. msgspec takes microseconds for one
    near the limits of a double, fifty times as long as Python, and a body has room for millions."""

    def __init__(self) -> None:
        self._num = 0

    def read(self, text: str) -> float:
        """Read one number.

        Raises:
            InvalidParameter: the body has too many such numbers.
        """
        self._num += 1 + len(text) // _USUAL_FLOAT
        if self._num > MAX_FLOATS:
            raise _too_much(MAX_FLOATS, "numbers with a point or an exponent")
        number = float(text)
        if math.isinf(number):
            raise msgspec.ValidationError("Number out of range")
        return number


def _too_much(most: int, what: str) -> InvalidParameter:
    return InvalidParameter(
        f"the body holds more than {most} {what}, which would take too long to read; send fewer "
        "per request"
    )


def _check_amount(body: bytes) -> None:
    """Refuse a body that takes long to decode. Marks within strings count, too: texts with so many
    marks are longer than any model reads.

    Raises:
        InvalidParameter: names what there is too much of.
    """
    num_commas = _count(body, MAX_VALUES, b",")
    if num_commas <= _FEW:
        return
    num_quotes = body.count(b'"') - body.count(b'\\"')  # each string has at least one
    for found, most, what in (
        (num_commas, MAX_VALUES, "values"),
        (_count(body, MAX_CONTAINERS, b"[", b"{"), MAX_CONTAINERS, "arrays and objects"),
        (_count(body, MAX_NAMED, b":"), MAX_NAMED, "named values"),
        (num_quotes // 2, MAX_STRINGS, "strings"),
    ):
        if found > most:
            raise _too_much(most, what)


def _count(body: bytes, most: int, *marks: bytes) -> int:
    """How many of these marks there are; stops soon after `most`."""
    found = 0
    for start in range(0, len(body), _WINDOW):
        found += sum(body.count(mark, start, start + _WINDOW) for mark in marks)
        if found > most:
            break
    return found
