"""Failures as HTTP answers: `{"error": {message, type, param, code}}`, or the shape of the dialect
that the path belongs to.

`STATUS_TABLE` is the only place that knows which `EngineError` becomes which HTTP status. Routes
raise errors; `install` registers the handlers that answer. Nothing here shows a stack trace, a path
or a prompt: messages of our own faults stay in the log.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine import errors
from server.http.absent import not_found
from server.http.scope import get_path

INVALID_REQUEST = "invalid_request_error"
RATE_LIMIT = "rate_limit_error"
SERVER_ERROR = "server_error"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StatusRow:
    """How to answer one type of error.

    Attributes:
        status: HTTP status code.
        type: OpenAI's `error.type`.
        retry_after_s: `Retry-After` header where the error itself has none; None sends none.
        show_message: whether the client may read `str(error)`.
    """

    status: int
    type: str
    retry_after_s: int | None = None
    show_message: bool = True


_CALLER = StatusRow(400, INVALID_REQUEST)
_UNKNOWN = StatusRow(404, INVALID_REQUEST)
_CONFLICT = StatusRow(409, INVALID_REQUEST)
_UNAVAILABLE = StatusRow(503, SERVER_ERROR, retry_after_s=5)
_LOAD = StatusRow(503, SERVER_ERROR, retry_after_s=60)
_FAULT = StatusRow(500, SERVER_ERROR, show_message=False)

STATUS_TABLE: Mapping[type[errors.EngineError], StatusRow] = {
    errors.EngineError: _FAULT,
    errors.RequestError: _CALLER,
    errors.InvalidParameter: _CALLER,
    errors.ContextLengthExceeded: _CALLER,
    errors.UnknownModel: _UNKNOWN,
    errors.UnknownAdapter: _UNKNOWN,
    errors.UnknownResponse: _UNKNOWN,
    errors.UnknownConversation: _UNKNOWN,
    errors.ModelConflict: _CONFLICT,
    errors.NotAllowed: StatusRow(403, INVALID_REQUEST),
    errors.UnsupportedFeature: _CALLER,
    errors.CapacityError: _UNAVAILABLE,
    errors.QueueFull: StatusRow(429, RATE_LIMIT, retry_after_s=1),
    errors.Draining: _UNAVAILABLE,
    errors.ModelNotReady: _UNAVAILABLE,
    # This server will not have the model again by itself, but another one behind the same address
    # may.
    errors.ModelUnloading: _UNAVAILABLE,
    errors.TooManyModels: _CONFLICT,
    errors.TooManyAdapters: _CONFLICT,
    # Not retryable: the same request never fits this pool, so the request must change.
    errors.OutOfBlocks: _CALLER,
    # The status that proxies log when a client left; also the answer to an image request cancelled
    # by id.
    errors.RequestAborted: StatusRow(499, INVALID_REQUEST),
    errors.ModelLoadError: _LOAD,
    errors.ModelNotFound: _LOAD,
    errors.UnsupportedArchitecture: _LOAD,
    errors.MissingWeight: _LOAD,
    errors.ShapeMismatch: _LOAD,
    errors.CorruptFile: _LOAD,
    errors.InsufficientMemory: _LOAD,
    errors.InternalError: _FAULT,
    errors.EngineDead: _UNAVAILABLE,
    # Logged where it happened; the message refers to that log line.
    errors.RequestFailed: StatusRow(500, SERVER_ERROR),
    # The checkpoint's fault; the message holds nothing of ours.
    errors.ChatTemplateFailed: StatusRow(500, SERVER_ERROR),
    errors.InvariantViolation: _FAULT,
}

LOAD_STATUS_TABLE: Mapping[type[errors.EngineError], StatusRow] = {
    errors.ModelLoadError: _CALLER,
    errors.ModelNotFound: _UNKNOWN,
    errors.InsufficientMemory: _LOAD,
}
"""The statuses for the client that asked for a load: a model that cannot be loaded is not the
server's failure."""

_NO_SHAPES: Mapping[str, "ErrorShape"] = {}

_HIDDEN_MESSAGE = "internal error; the server's log has the details under this request's id"

_HTTP_CODES = {
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    415: "unsupported_media_type",
    429: "rate_limit_exceeded",
}


def status_row(
    error: errors.EngineError,
    table: Mapping[type[errors.EngineError], StatusRow] = STATUS_TABLE,
) -> StatusRow:
    """The table's row for an error's type, or for its nearest ancestor."""
    return next(table[t] for t in type(error).__mro__ if t in table)


@dataclass(frozen=True, slots=True)
class ErrorFacts:
    """The facts about a failure that a client may know.

    Attributes:
        status: HTTP status code, set for a failure within a stream, too.
        type: OpenAI's `error.type`.
        overflow: the numbers of a prompt that does not fit.
    """

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    overflow: errors.Overflow | None = None


ErrorShape = Callable[[ErrorFacts], bytes]
"""Writes a failure as JSON."""


def openai_shape(facts: ErrorFacts) -> bytes:
    """The JSON of a failed request, also used as an event within a stream."""
    content = {
        "message": facts.message,
        "type": facts.type,
        "param": facts.param,
        "code": facts.code,
    }
    return msgspec.json.encode({"error": content})


def renamed(facts: ErrorFacts, names: Mapping[str, str]) -> ErrorFacts:
    """A failure in the words of another API: `names` maps OpenAI's names of chat fields to its
    own."""

    def own_name(match: re.Match[str]) -> str:
        return names[match[0]]

    pattern = rf"\b({'|'.join(map(re.escape, names))})\b"
    param = None if facts.param is None else re.sub(pattern, own_name, facts.param)
    return replace(facts, message=re.sub(pattern, own_name, facts.message), param=param)


class ErrorResponse(Response):
    """The answer to a failed request, in the shape of the requested path."""

    media_type = "application/json"

    def __init__(self, facts: ErrorFacts, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(openai_shape(facts), facts.status, headers)
        self._facts = facts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        shape = _shape_of(scope)
        if shape is not None:
            self.body = shape(self._facts)
            self.headers["content-length"] = str(len(self.body))
        await super().__call__(scope, receive, send)


def _shape_of(scope: Scope) -> ErrorShape | None:
    """The shape that `install` was given for the beginning of this path."""
    if "app" not in scope:  # middleware on its own
        return None
    shapes: Mapping[str, ErrorShape] = scope["app"].state.error_shapes
    path = get_path(scope)
    return next((shapes[start] for start in shapes if path.startswith(start)), None)


def error_response(
    status: int,
    message: str,
    type: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error answer, for what middleware refuses itself."""
    return ErrorResponse(ErrorFacts(status, message, type, param, code), headers)


def error_facts(error: BaseException) -> ErrorFacts:
    """The facts of any exception; one that is not an `EngineError` reveals nothing of itself."""
    if not isinstance(error, errors.EngineError):
        code = errors.InternalError.code
        return ErrorFacts(_FAULT.status, _HIDDEN_MESSAGE, SERVER_ERROR, code=code)
    row = status_row(error)
    message = error.message if row.show_message else _HIDDEN_MESSAGE
    overflow = error.overflow if isinstance(error, errors.ContextLengthExceeded) else None
    return ErrorFacts(row.status, message, row.type, error.param, error.code, overflow)


def engine_error_response(error: BaseException) -> Response:
    """The HTTP answer for any exception, with `Retry-After` where the table has one."""
    row = status_row(error) if isinstance(error, errors.EngineError) else _FAULT
    wait_s = error.retry_after_s if isinstance(error, errors.CapacityError) else None
    wait_s = row.retry_after_s if wait_s is None else wait_s
    headers = {} if wait_s is None else {"Retry-After": str(wait_s)}
    return ErrorResponse(error_facts(error), headers)


def load_error_response(error: errors.ModelLoadError) -> Response:
    """The HTTP answer to a client that asked for a model that cannot be loaded."""
    row = status_row(error, LOAD_STATUS_TABLE)
    return error_response(
        row.status,
        error.message,
        row.type,
        param=error.param,
        code=error.code,
        headers={} if row.retry_after_s is None else {"Retry-After": str(row.retry_after_s)},
    )


def log_unexpected(error: BaseException) -> None:
    """Log a fault of ours; called exactly once, where it becomes an answer."""
    if not isinstance(error, errors.EngineError):
        log.error("request failed", error=type(error).__name__, exc_info=error)
    elif not status_row(error).show_message:
        log.error("request failed", error=error.code, exc_info=error)


def field_path(location: Sequence[int | str]) -> str:
    """pydantic's location as OpenAI writes it: `("messages", 0, "role")` → `messages[0].role`."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def install(app: FastAPI, shapes: Mapping[str, ErrorShape] = _NO_SHAPES) -> None:
    """Register the handlers on an app. `RecoverMiddleware` handles unexpected errors.

    Args:
        shapes: by the beginning of a path, how its failures are written; OpenAI's shape elsewhere.
    """
    app.state.error_shapes = shapes
    app.add_exception_handler(errors.EngineError, _on_engine_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


async def _on_engine_error(request: Request, error: Exception) -> Response:
    log_unexpected(error)
    return engine_error_response(error)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param, message = explained(first, first["loc"][1:])
    return error_response(400, message, INVALID_REQUEST, param=param, code="invalid_value")


def explained(error: Mapping[str, Any], location: Sequence[int | str]) -> tuple[str | None, str]:
    """The field that one of pydantic's errors is about, and a message that says what is wrong."""
    param = _sanitised(field_path([p for p in location if not str(p).startswith("[")])) or None
    return param, f"{param or 'the body'}: {_explain(error)}"


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    fallback = SERVER_ERROR if status >= 500 else INVALID_REQUEST
    message = {
        404: not_found(get_path(request.scope)),
        405: f"this route does not accept {request.method}; see /docs",
    }.get(status, str(error.detail))
    code = _HTTP_CODES.get(status)
    return error_response(status, message, fallback, code=code, headers=error.headers)


_JSON_TYPES = {
    "NoneType": "null",
    "bool": "a boolean",
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "list": "an array",
    "dict": "an object",
}


def _explain(error: Mapping[str, Any]) -> str:
    """The explanation of a pydantic error: what is allowed and which type was given; never the
    given value itself."""
    kind, limits = error["type"], error.get("ctx", {})
    if kind == "missing":
        return "this field is required"
    if kind in ("too_short", "too_long"):
        bound = "at least" if kind == "too_short" else "at most"
        return f"must have {bound} {limits.get('min_length', limits.get('max_length'))} items"
    # pydantic speaks of Python's types; the client speaks JSON and knows no model names.
    allowed = str(error["msg"]).replace("Input should be", "must be")
    allowed = re.sub(r"a valid dictionary( or (instance of|object to) .*)?$", "an object", allowed)
    allowed = allowed.replace("a valid list", "an array").replace("String should", "must")
    given = _JSON_TYPES.get(type(error["input"]).__name__) if kind.endswith("_type") else None
    return f"{allowed}; got {given}" if given else allowed


def _sanitised(path: str) -> str:
    """A path for a message. Keys come from the client, so only plain characters and a limited
    length are returned."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "_.-[]") else "?" for c in path)
    return kept[:128]
