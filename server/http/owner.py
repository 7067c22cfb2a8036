"""Whose a request is: noted by the middleware that reads API keys, by the key that it came with.

Where clients only have to be told apart, and there are no keys, the address stands for the client.
"""

import hashlib
from contextvars import ContextVar
from typing import NewType

from starlette.requests import HTTPConnection
from starlette.types import Scope

_KEY = "owner"
_client: ContextVar[str] = ContextVar("client", default="")

Owner = NewType("Owner", bytes)
"""A digest of the key."""


def note_owner(scope: Scope, key: bytes) -> None:
    """The request came with that key, which is a valid one."""
    owner = Owner(hashlib.sha256(key).digest())
    scope.setdefault("state", {})[_KEY] = owner
    _client.set(owner.hex())


def note_address(scope: Scope) -> None:
    """The request came from that address, for what is done in its context."""
    address = scope.get("client")
    _client.set(address[0] if address else "")


def current_client() -> str:
    """Who sent the request that is being answered, so that clients can take turns: one key is one
    client, and without keys one address."""
    return _client.get()


def owner_of(connection: HTTPConnection) -> Owner | None:
    """Of a request; None where no keys are asked for: then everything is everybody's."""
    owner: Owner | None = connection.scope.get("state", {}).get(_KEY)
    return owner
