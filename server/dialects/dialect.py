"""The facts about a dialect that the server needs, and the conversion of its bodies to those of our
own routes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from engine.contract.operations import AnyOperation
from server.http.errors import ErrorShape

BodyT = TypeVar("BodyT", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """A row of `server/dialects/table.py`.

    Attributes:
        failures: the beginning of all its paths and of no others, and the function that writes
            every failure under these, including middleware's. None if failures are in OpenAI's
            form.
        bodies: requests that name a model in `model` → the kind of that model.
    """

    router: APIRouter
    failures: tuple[str, ErrorShape] | None = None
    bodies: Mapping[type[BaseModel], AnyOperation]


def responses(
    example: Any, failure: Mapping[str, Any], *, stream_type: str | None = None
) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` for a route, from examples.

    Args:
        stream_type: media type of a stream, if it may answer with one.
    """
    types = ("application/json", *([stream_type] if stream_type else []))
    whole: Any = {"content": {type: {"example": example} for type in types}}
    content = {"application/json": {"example": failure, "schema": {"type": "object"}}}
    failed = {"description": "A failure.", "content": content}
    statuses = (400, 401, 404, 413, 415, 429, 500, 503)
    return {200: whole | {"description": "The answer."}, **dict.fromkeys(statuses, failed)}


def openai_body(model: type[BodyT], fields: Mapping[str, Any]) -> BodyT:
    """The body of our own route with these fields; null ones are left out.

    Raises:
        RequestValidationError, EngineError: the route itself would refuse the body.
    """
    try:
        return model.model_validate({k: v for k, v in fields.items() if v is not None})
    except ValidationError as error:
        found = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(found) from None
