"""Streams whose pictures wait for memory: they begin, and break the silence."""

import asyncio
import json
import random

import pytest

from engine.contract.draw import ImageTask
from server.images.picture_budget import PictureShare
from tests.helpers.server.caller import Caller
from tests.helpers.server.fake_images import image_info
from tests.helpers.server.fake_server import until
from tests.helpers.server.image_server import EDITS, VARIATIONS, ImageServer, png
from tests.helpers.server.upscaling_server import UPSCALE_PATH, UpscalingServer

TASKS = (ImageTask.IMAGE_TO_IMAGE, ImageTask.EDIT, ImageTask.RESTORE)
INFO = image_info(tasks=TASKS, max_pixels=1 << 24, max_restored_pixels=1 << 24)
STREAMS = {
    "edit": (EDITS, {"prompt": "blue"}),
    "variation": (VARIATIONS, {"size": "64x64"}),
    "restoration": (UPSCALE_PATH, {"model": INFO.model, "scale": "1", "denoise": "0.5"}),
    "upscaling": (UPSCALE_PATH, {"scale": "1"}),
}


def waiting_server(route: str) -> ImageServer:
    settings = {"heartbeat_interval_s": random.uniform(0.01, 0.05)}
    if route == "upscaling":
        return UpscalingServer(**settings)
    return ImageServer(INFO, **settings)


def called(server: ImageServer, route: str, file: bytes) -> Caller:
    path, fields = STREAMS[route]
    files = {"image": ("a.png", file, "image/png")}
    return Caller(server.app, path, files=files, data={"stream": "true", **fields})


async def filled(server: ImageServer) -> PictureShare:
    """All memory for decoded pictures, taken."""
    state = server.state
    return await state.pictures.budget.take("other", state.settings.max_decoded_image_bytes)


@pytest.mark.parametrize("route", STREAMS)
async def test_a_stream_that_waits_for_memory_sends_pings(route: str) -> None:
    server = waiting_server(route)
    share = await filled(server)
    caller = called(server, route, png())
    sending = asyncio.create_task(caller.send(asyncio.Event()))
    await until(lambda: caller.answer.startswith(b": ping\n\n"), timeout_s=60)
    assert caller.status == 200
    share.release()
    await sending
    assert b"event: image_" in caller.answer and b'"error"' not in caller.answer


async def test_an_error_behind_a_ping_is_an_event() -> None:
    server = waiting_server("edit")
    share = await filled(server)
    # The last 20 bytes are no pixels: checksums and the end's mark.
    caller = called(server, "edit", png()[: -random.randint(30, 60)])
    sending = asyncio.create_task(caller.send(asyncio.Event()))
    await until(lambda: caller.answer.startswith(b": ping\n\n"), timeout_s=60)
    share.release()
    await sending
    [event] = [line for line in caller.answer.split(b"\n") if line.startswith(b"data: {")]
    assert json.loads(event.removeprefix(b"data: "))["error"]["param"] == "image"


@pytest.mark.parametrize("route", STREAMS)
async def test_a_client_may_leave_a_stream_that_waits_for_memory(route: str) -> None:
    server = waiting_server(route)
    share = await filled(server)
    leaving = asyncio.Event()
    caller = called(server, route, png())
    sending = asyncio.create_task(caller.send(leaving))
    await until(lambda: caller.answer.startswith(b": ping\n\n"), timeout_s=60)
    leaving.set()
    await sending
    share.release()
    state = server.state
    assert (state.pictures.budget.num_taken, state.admission.num_in_flight()) == (0, 0)
