"""Reads what a proxy in front says about its client: the address, the scheme, and the name by which
the client asked for the server."""

from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from server.http.own_address import TRUSTED_NAME

_HOST, _FORWARDED_HOST, _FORWARDED = b"host", b"x-forwarded-host", b"x-forwarded-"


class ForwardedMiddleware:
    """uvicorn's own middleware, which here also notes the name. Every client of our Unix socket
    counts as a proxy."""

    def __init__(self, app: ASGIApp, proxies: Sequence[str]) -> None:
        self._inner = ProxyHeadersMiddleware(app, list(proxies))  # type: ignore[arg-type]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._is_proxy(scope):
            names = dict(scope["headers"])  # the last of several, which the last proxy has written
            is_forwarded = any(name.startswith(_FORWARDED) for name in names)
            if is_forwarded or not scope.get("client"):
                name = names.get(_FORWARDED_HOST, names.get(_HOST, b""))
                scope[TRUSTED_NAME] = name.decode("latin-1").rpartition(",")[2].strip()
        await self._inner(scope, receive, send)  # type: ignore[arg-type]

    def _is_proxy(self, scope: Scope) -> bool:
        client = scope.get("client")
        return not client or client[0] in self._inner.trusted_hosts
