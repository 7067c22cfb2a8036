"""The owner of a request: noted by the middleware that reads API keys, from the request's key.

Without keys, the client's address tells clients apart.
"""

import hashlib
from contextvars import ContextVar
from typing import NewType

from starlette.requests import HTTPConnection
from starlette.types import Scope

_KEY = "owner"
_client: ContextVar[str] = ContextVar("client", default="")

Owner = NewType("Owner", bytes)
"""A digest of an API key."""


def note_owner(scope: Scope, key: bytes) -> None:
    """Note that the request came with that key, which is valid."""
    owner = Owner(hashlib.sha256(key).digest())
    scope.setdefault("state", {})[_KEY] = owner
    _client.set(owner.hex())


def note_address(scope: Scope) -> None:
    """Note the address that the request came from, for work in its context."""
    address = scope.get("client")
    _client.set(address[0] if address else "")


def current_client() -> str:
    """The sender of the current request, so that clients can take turns: one API key is one client,
    or one address if there are no keys."""
    return _client.get()


def owner_of(connection: HTTPConnection) -> Owner | None:
    """The owner of a request; None if no keys are required: then all clients share everything."""
    owner: Owner | None = connection.scope.get("state", {}).get(_KEY)
    return owner
