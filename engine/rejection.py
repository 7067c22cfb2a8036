"""How a request that the engine did not take is answered: one event per completion or image."""

from typing import overload

from engine.errors import EngineError
from engine.image_types import ImageEvent, ImageRequest
from engine.types import FinishReason, GenerateRequest, TokenEvent


@overload
def rejection(request: GenerateRequest, error: EngineError) -> list[TokenEvent]: ...
@overload
def rejection(request: ImageRequest, error: EngineError) -> list[ImageEvent]: ...
def rejection(
    request: GenerateRequest | ImageRequest, error: EngineError
) -> list[TokenEvent] | list[ImageEvent]:
    """The events that end every completion of `request` with `error`."""
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
        for index in range(request.num_completions)
    ]
