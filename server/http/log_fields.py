"""What routes add to their request's line of the access log."""

from typing import Any

from starlette.requests import HTTPConnection
from starlette.types import Scope

_KEY = "log_fields"


def annotate(connection: HTTPConnection, **fields: Any) -> None:
    """Add fields to this request's line. Prompts only if the operator asked for them."""
    connection.scope["state"].setdefault(_KEY, {}).update(fields)


def log_fields(scope: Scope) -> dict[str, Any]:
    """All that was added so far."""
    fields: dict[str, Any] = scope.get("state", {}).get(_KEY, {})
    return fields
