"""The fields that routes add to their request's line of the access log."""

from typing import Any

from starlette.requests import HTTPConnection
from starlette.types import Scope

_KEY = "log_fields"


def annotate(connection: HTTPConnection, **fields: Any) -> None:
    """Add fields to this request's line. They hold prompts only if the operator asked for that."""
    connection.scope["state"].setdefault(_KEY, {}).update(fields)


def log_fields(scope: Scope) -> dict[str, Any]:
    """All fields added so far."""
    fields: dict[str, Any] = scope.get("state", {}).get(_KEY, {})
    return fields
