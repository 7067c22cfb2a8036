"""A server of one model that draws."""

import pytest

from tests.helpers.server.image_server import ImageServer


@pytest.fixture
async def server() -> ImageServer:
    """A server of `painter`."""
    return ImageServer()
