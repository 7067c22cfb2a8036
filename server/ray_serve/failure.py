"""What a client gets when the server that answered it is gone."""

from starlette.responses import Response

from engine.errors import EngineError
from server.app import ERROR_SHAPES
from server.http.errors import error_facts, openai_shape
from server.http.sse import DONE, named_event
from server.ray_serve.call import Head


def failed_answer(path: str, error: EngineError) -> Response:
    """The answer to a request that got none."""
    headers = {"Retry-After": "1"}
    status = error_facts(error).status
    return Response(_written(path, error), status, headers, "application/json")


def last_event(path: str, head: Head, error: EngineError) -> bytes | None:
    """The end of a stream that broke off; None if the answer is no stream of events."""
    media_type = dict(head.headers).get(b"content-type", b"").partition(b";")[0]
    if media_type == b"application/x-ndjson":
        return _written(path, error) + b"\n"
    if media_type != b"text/event-stream":
        return None
    # Clients of OpenAI do not look at the name, those of Anthropic need it.
    return named_event("error", _written(path, error)) + (b"" if _has_shape(path) else DONE)


def _has_shape(path: str) -> bool:
    return any(path.startswith(start) for start in ERROR_SHAPES)


def _written(path: str, error: EngineError) -> bytes:
    shapes = (shape for start, shape in ERROR_SHAPES.items() if path.startswith(start))
    return next(shapes, openai_shape)(error_facts(error))
