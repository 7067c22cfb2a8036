"""How a request that cannot be served is answered: one event per completion or image."""

from collections.abc import Iterable
from typing import overload

from engine.errors import EngineError
from engine.image_types import ImageEvent, ImageRequest
from engine.types import FinishReason, GenerateRequest, TokenEvent


@overload
def rejection(
    request: GenerateRequest, error: EngineError, indexes: Iterable[int] | None = None
) -> list[TokenEvent]: ...
@overload
def rejection(
    request: ImageRequest, error: EngineError, indexes: Iterable[int] | None = None
) -> list[ImageEvent]: ...
def rejection(
    request: GenerateRequest | ImageRequest,
    error: EngineError,
    indexes: Iterable[int] | None = None,
) -> list[TokenEvent] | list[ImageEvent]:
    """The events that end completions of `request` with `error`: all, or those of `indexes`."""
    event_type = TokenEvent if isinstance(request, GenerateRequest) else ImageEvent
    return [  # type: ignore[return-value]
        event_type(
            request_id=request.request_id,
            index=index,
            finish_reason=FinishReason.ERROR,
            error_code=error.code,
            error_message=error.message,
            error_param=error.param,
        )
        for index in (range(request.num_completions) if indexes is None else indexes)
    ]
