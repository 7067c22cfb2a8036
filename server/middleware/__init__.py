"""The middleware that every request passes on its way to a route and back. It is pure ASGI, so
streams pass untouched.

    forwarded → HEAD → root path → request id → access log → CORS → recover → host check or auth
    → body limit → slow body → routes

Refusals by the inner ones carry the request id and CORS headers and are logged.
"""

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from server.http.own_address import WILDCARDS
from server.http.usage import UsageTable
from server.metrics import ServerMetrics
from server.middleware.access_log import AccessLogMiddleware
from server.middleware.auth import AuthMiddleware
from server.middleware.body_limit import BodyLimitMiddleware
from server.middleware.forwarded import ForwardedMiddleware
from server.middleware.head import HeadMiddleware
from server.middleware.host_check import ANY_HOST, HostCheckMiddleware
from server.middleware.recover import RecoverMiddleware
from server.middleware.request_id import RequestIdMiddleware
from server.middleware.root_path import RootPathMiddleware
from server.middleware.slow_body import SlowBodyMiddleware
from server.settings import Settings

_EXPOSED_HEADERS = ("X-Request-Id", "X-Ignored-Fields", "X-Image-Id", "Retry-After")


def install(app: FastAPI, settings: Settings, metrics: ServerMetrics, usage: UsageTable) -> None:
    """Add all middleware. Starlette puts what is added last outermost."""
    app.add_middleware(
        SlowBodyMiddleware,
        timeout_s=settings.body_timeout_s,
        min_bytes_per_s=settings.min_body_bytes_per_s,
    )
    app.add_middleware(BodyLimitMiddleware, max_body_bytes=settings.max_body_bytes)
    keys, admin_keys = settings.read_api_keys(), settings.read_admin_keys()
    if keys or admin_keys:
        app.add_middleware(
            AuthMiddleware, keys=keys, admin_keys=admin_keys, names=settings.key_names()
        )
    if not keys and settings.host not in WILDCARDS and ANY_HOST not in settings.allowed_hosts:
        app.add_middleware(HostCheckMiddleware, allowed_hosts=settings.own_hosts)
    app.add_middleware(RecoverMiddleware)
    if settings.cors_allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_allow_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=_EXPOSED_HEADERS,
        )
    spans = None
    if settings.otlp_endpoint is not None:
        from server.middleware.spans import create_spans

        spans = create_spans(settings.otlp_endpoint)
    app.add_middleware(
        AccessLogMiddleware, metrics=metrics, usage=usage, settings=settings, spans=spans
    )
    app.add_middleware(RequestIdMiddleware)
    if settings.root_path:
        app.add_middleware(RootPathMiddleware, root_path=settings.root_path)
    app.add_middleware(HeadMiddleware)
    app.add_middleware(ForwardedMiddleware, proxies=settings.forwarded_allow_ips)
