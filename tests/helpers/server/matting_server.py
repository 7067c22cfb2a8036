"""A server over an engine that removes backgrounds, for the tests of its routes."""

from typing import Any

import httpx

from server.app import create_app
from tests.helpers.server.fake_matting_engine import FakeMattingEngine, matting_info
from tests.helpers.server.image_server import ImageServer, data_url, png

MATTE = "/v1/images/matte"


class MattingServer(ImageServer):
    """An app over a model that removes backgrounds, and others if they are given."""

    def __init__(self, *infos: Any, **settings: Any) -> None:
        super().__init__(**settings)
        self.engine = FakeMattingEngine(*infos or [matting_info()])
        self.engine.config_of_server = self.settings.engine
        self.app = create_app(self.settings, self.engine)
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=True)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")

    async def matte(self, **body: Any) -> Any:
        return await self.client.post(MATTE, json={"image": data_url(png())} | body)

    async def form(self, files: dict[str, bytes], **fields: str) -> Any:
        parts = [(name, ("a.png", data, "image/png")) for name, data in files.items()]
        return await self.client.post(MATTE, files=parts, data=fields)
