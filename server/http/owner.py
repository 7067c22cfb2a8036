"""Whose a request is, by the API key that it came with: noted by the middleware that reads keys."""

import hashlib
from typing import NewType

from starlette.requests import HTTPConnection
from starlette.types import Scope

_KEY = "owner"

Owner = NewType("Owner", bytes)
"""A digest of the key."""


def note_owner(scope: Scope, key: bytes) -> None:
    """The request came with that key, which is a valid one."""
    scope.setdefault("state", {})[_KEY] = Owner(hashlib.sha256(key).digest())


def owner_of(connection: HTTPConnection) -> Owner | None:
    """Of a request; None where no keys are asked for: then everything is everybody's."""
    owner: Owner | None = connection.scope.get("state", {}).get(_KEY)
    return owner
