"""The prefix under which a proxy in front publishes this server, whether or not it strips it."""

from starlette.types import ASGIApp, Receive, Scope, Send


class RootPathMiddleware:
    """Sets `root_path`. uvicorn's own option puts the prefix before every path, so that only a
    proxy that strips it would work."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            scope["root_path"] = self._root_path
        await self.app(scope, receive, send)
