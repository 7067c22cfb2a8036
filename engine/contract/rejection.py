"""Answers a request that cannot be served with one event per completion or image."""

from collections.abc import Iterable
from typing import Any

from engine.contract.operations import operation_of
from engine.contract.request import EventT, FinishReason, Request
from engine.errors import EngineError, Failure


def rejection(
    request: Request[EventT], error: EngineError, indexes: Iterable[int] | None = None
) -> list[EventT]:
    """The events that end all completions of `request`, or those of `indexes`, with `error`."""
    failure = Failure.of(error)
    event: Any = operation_of(request).event
    return [
        event(
            request_id=request.request_id,
            index=index,
            finish_reason=FinishReason.ERROR,
            failure=failure,
        )
        for index in (range(request.num_completions) if indexes is None else indexes)
    ]
