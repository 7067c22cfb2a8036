"""One debug line and one count per request.

Routes add what they know, such as token counts, with `server.http.log_fields.annotate`.
"""

import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.log_fields import log_fields
from server.metrics import ServerMetrics

CLIENT_LEFT = 499
"""The status that proxies log when the client closed the connection before an answer."""

_METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

log = structlog.get_logger(__name__)


class AccessLogMiddleware:
    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start_s = time.perf_counter()
        status = CLIENT_LEFT

        async def send_and_look(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_look)
        finally:
            self._record(scope, status, time.perf_counter() - start_s)

    def _record(self, scope: Scope, status: int, duration_s: float) -> None:
        # Clients choose methods and paths; labels must stay few.
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        route = getattr(scope.get("route"), "path", "unmatched")
        self._metrics.count_http(method, route, status)
        log.debug(
            "request",
            method=method,
            route=route,
            status=status,
            duration_s=round(duration_s, 4),
            **log_fields(scope),
        )
