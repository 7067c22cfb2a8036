"""The answers of `/v1/requests`."""

from dataclasses import dataclass
from typing import Literal


@dataclass(slots=True, kw_only=True)
class LiveRequest:
    """A request in flight. Texts count tokens; images have a `progress` from 0 to 1."""

    id: str
    """Id of its answer, such as `chatcmpl-…` or `img-…`; `embd-…` if the answer has none."""
    object: Literal["request"] = "request"
    request_id: str
    """The `X-Request-Id` that the request came with or was given."""
    kind: str
    model: str
    created: int
    status: Literal["queued", "running", "cancelled"]
    n: int
    num_finished: int
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    progress: float | None = None
    operation: str | None = None
    """What is done now for an image: `draw`, or the operation of a stage of `then`."""
    stage: int | None = None
    """Number of that stage: 0 is the drawing."""


@dataclass(slots=True, kw_only=True)
class LiveRequestList:
    """Requests in flight, the oldest first."""

    object: Literal["list"] = "list"
    data: list[LiveRequest]
