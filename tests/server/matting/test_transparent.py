"""`background: transparent` where images are drawn."""

import asyncio
from typing import Any

import numpy as np
import pytest

from tests.helpers.server.fake_engine import Failure
from tests.helpers.server.fake_images import image_info, matting_info
from tests.helpers.server.fake_server import error_of, until
from tests.helpers.server.image_server import MattingServer, named_events, opened


@pytest.fixture
async def server() -> MattingServer:
    return MattingServer(image_info(), matting_info())


async def test_the_background_is_taken_away(server: MattingServer) -> None:
    body = (await server.generate(background="transparent", n=2)).json()
    assert body["background"] == "transparent"
    for data in body["data"]:
        image = np.asarray(opened(data["b64_json"]))
        assert image.shape == (64, 64, 4)
        assert (image[:, :32, 3] == 0).all() and (image[:, 32:, 3] == 255).all()
    assert any("neither opaque" in text for text in body["warnings"])


async def test_edits_too(server: MattingServer) -> None:
    response = await server.edit(background="transparent", output_format="webp")
    assert opened(response.json()["data"][0]["b64_json"]).mode == "RGBA"


async def test_opaque_stays_opaque(server: MattingServer) -> None:
    for background in ("auto", "opaque", None):
        body = (await server.generate(background=background)).json()
        assert body["background"] == "opaque"
        assert opened(body["data"][0]["b64_json"]).mode == "RGB"
    assert not server.engine.requests_for("matte")


async def test_a_streams_last_event_is_transparent(server: MattingServer) -> None:
    response = await server.generate(background="transparent", stream=True, partial_images=1)
    events = named_events(response.text)
    assert [data["background"] for _, data in events] == ["opaque", "transparent"]
    assert opened(events[-1][1]["b64_json"]).mode == "RGBA"


async def test_jpeg_is_refused(server: MattingServer) -> None:
    response = await server.generate(background="transparent", output_format="jpeg")
    assert error_of(response)["param"] == "output_format"


async def test_without_a_model_nothing_is_drawn() -> None:
    server = MattingServer(image_info(), load_on_first_use=False)
    error = error_of(await server.generate(background="transparent"))
    assert "background removal" in error["message"]
    assert not server.engine.requests_for("draw")


async def test_a_failure_is_the_requests(server: MattingServer) -> None:
    def fail(*args: Any) -> Any:
        server.engine.failure = Failure(code="request_failed", message="broken")
        return draw(*args)

    draw = server.engine.draw
    server.engine.draw = fail
    error_of(await server.generate(background="transparent"), 500)


@pytest.mark.parametrize("stream", [False, True])
async def test_places_of_pictures_that_never_come_are_given_back(
    server: MattingServer, stream: bool
) -> None:
    server.engine.failure = Failure(code="invalid_parameter", message="no such picture")
    await server.generate(background="transparent", n=3, stream=stream)
    assert server.engine.requests_for("draw") and not server.engine.requests_for("matte")


async def test_a_cancel_ends_the_matte_as_well(server: MattingServer) -> None:
    def draw_and_hold(*args: Any) -> Any:
        server.engine.hold()
        return draw(*args)

    draw = server.engine.draw
    server.engine.draw = draw_and_hold
    task = asyncio.create_task(server.generate(background="transparent"))
    await until(lambda: bool(server.engine.requests_for("matte")))
    [matte] = server.engine.requests_for("matte")
    image_id = server.last.request_id
    await server.client.delete(f"/v1/images/{image_id}")
    assert (await task).status_code == 499
    assert matte.request_id in server.engine.aborted
