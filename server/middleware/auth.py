"""API keys: `Authorization: Bearer KEY`, `X-Api-Key: KEY`, or as the password of basic
authentication, which is all that A1111's clients send.

Guards every path, also those without a route, so that routes cannot be found by trying. Only the
probes are open, stored images, whose names are secrets themselves, and the pages / and /docs, which
ask their reader for a key. Without API keys everything is open, and admin keys only tell who may
change what is served.
"""

import base64
import binascii
import hmac
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from starlette.types import ASGIApp, Receive, Scope, Send

from server.http.admin import note_admin_key
from server.http.errors import INVALID_REQUEST, error_response
from server.http.owner import note_owner
from server.http.request_trace import current_trace
from server.http.scope import get_header, get_path

OPEN_PATHS = frozenset({"/health", "/v1/health", "/ping", "/ready"})
OPEN_TREES = ("/ready/", "/playground/")
OPEN_PAGES = frozenset({"/", "/docs"})
"""Paths that may only be read. They are the same on every server."""
OPEN_FOLDERS = frozenset({"/docs", "/v1/images/files"})


class AuthMiddleware:
    """Lets requests with a valid key pass.

    Args:
        names: how each key is called in the log and in usage.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Sequence[str],
        admin_keys: Sequence[str] = (),
        names: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.app = app
        self._keys = [key.encode() for key in keys]
        self._admin_keys = [key.encode() for key in admin_keys]
        self._names = {key.encode(): name for key, name in names.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._may_pass(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._refuse(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        if scope["type"] == "http" and _is_open(scope):
            return True
        given = _given_key(scope)
        is_admin = _is_one_of(given, self._admin_keys)
        is_known = _is_one_of(given, self._keys)
        if given is not None and self._keys and (is_admin or is_known):
            note_owner(scope, given)
        if is_admin:
            note_admin_key(scope)
        if given is not None and (is_admin or is_known):
            current_trace().key = self._names.get(given)
        return is_admin or is_known or not self._keys

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = "the API key is not valid" if _given_key(scope) else "an API key is required"
        response = error_response(
            401,
            f"{problem}; send it as Authorization: Bearer KEY",
            INVALID_REQUEST,
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await response(scope, receive, send)


def _is_one_of(given: bytes | None, keys: Sequence[bytes]) -> bool:
    # Every key is compared, in constant time, so that timing says nothing about the keys.
    matches = [hmac.compare_digest(given or b"", key) for key in keys]
    return any(matches)


def _is_open(scope: Scope) -> bool:
    path = get_path(scope)
    folder, _, name = path.rpartition("/")
    if scope["method"] != "GET":
        return path in OPEN_PATHS
    is_file = folder in OPEN_FOLDERS and name != ""
    is_page = path in OPEN_PAGES or is_file
    return path in OPEN_PATHS or is_page or path.startswith(OPEN_TREES)


def _given_key(scope: Scope) -> bytes | None:
    authorization = get_header(scope, b"authorization")
    if authorization is not None:
        scheme, _, key = authorization.partition(b" ")
        if scheme.lower() == b"basic":
            return _password(key)
        return key.strip() if scheme.lower() == b"bearer" else None
    return get_header(scope, b"x-api-key")


def _password(credentials: bytes) -> bytes | None:
    """The password of `user:password` in base64; the user name does not matter."""
    try:
        return base64.b64decode(credentials.strip(), validate=True).partition(b":")[2]
    except binascii.Error:
        return None
