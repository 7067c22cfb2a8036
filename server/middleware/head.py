"""HEAD, as load balancers and health checks ask, answered like GET."""

from starlette.types import ASGIApp, Receive, Scope, Send


class HeadMiddleware:
    """Turns HEAD into GET. The web server leaves out the body by its own scope, as the one that is
    handed on is a copy. Metrics and the access log count a GET."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self.app(scope, receive, send)
