"""One line and one count per request, and the tree of phases of a slow one.

Routes add what they know, such as token counts, with `server.http.log_fields.annotate`, and meters
what happened in the engine (`server.http.request_trace`).
"""

import logging
import time
from typing import TYPE_CHECKING

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.log_fields import log_fields
from server.http.request_trace import RequestTrace, as_text, begin_trace, end_trace
from server.http.usage import UsageTable
from server.metrics import ServerMetrics
from server.settings import Settings

if TYPE_CHECKING:
    from server.middleware.spans import Spans

CLIENT_LEFT = 499
"""The status that proxies log when the client closed the connection before an answer."""

_METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

_PROBES = frozenset(
    {"/health", "/v1/health", "/ping", "/ready", "/ready/{model_id:path}", "/metrics"}
)
"""Routes that machines ask again and again. They are logged at debug only, and have no traces."""

log = structlog.get_logger(__name__)


class AccessLogMiddleware:
    """Follows each request to its end.

    Args:
        spans: makes OpenTelemetry's traces, if they are asked for.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: ServerMetrics,
        usage: UsageTable,
        settings: Settings,
        spans: "Spans | None" = None,
    ) -> None:
        self.app = app
        self._metrics = metrics
        self._usage = usage
        self._spans = spans
        self._slow_s = settings.slow_request_seconds or float("inf")
        self._level = logging.INFO if settings.access_log else logging.DEBUG

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

        trace = RequestTrace(self._usage)
        if self._spans is not None:
            self._spans.begin(trace, scope)
        token = begin_trace(trace)
        try:
            await self.app(scope, receive, send_and_look)
        finally:
            end_trace(token)
            self._record(scope, status, time.perf_counter() - start_s, trace)

    def _record(self, scope: Scope, status: int, duration_s: float, trace: RequestTrace) -> None:
        # Clients choose methods and paths; labels must stay few.
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        route = getattr(scope.get("route"), "path", "unmatched")
        self._metrics.count_http(method, route, status)
        fields = {
            "method": method,
            "route": route,
            "status": status,
            "duration_s": round(duration_s, 4),
            **trace.log_fields(),
            **log_fields(scope),
        }
        is_probe = route in _PROBES and status < 400
        log.log(logging.DEBUG if is_probe else self._level, "request", **fields)
        if self._spans is not None and not is_probe:
            self._spans.end(trace, fields)
        if duration_s >= self._slow_s:
            log.warning("slow request", **fields, phases=as_text(trace.phases, trace.start_s))
