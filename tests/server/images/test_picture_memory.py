"""What pictures take is given back, however their request ends: by reference counts alone, since
the collector of a serving process looks at what is left over once in a long while."""

import asyncio
import gc
import json
import random
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.contract.draw import ImageTask
from engine.errors import ModelNotReady
from tests.helpers.server.caller import Caller
from tests.helpers.server.fake_engine import Failure
from tests.helpers.server.fake_images import image_info, matting_info, upscaler_info
from tests.helpers.server.fake_server import until
from tests.helpers.server.image_server import (
    EDITS,
    MATTE,
    ChainServer,
    ImageServer,
    MattingServer,
    data_url,
    saved,
)
from tests.helpers.server.upscaling_server import UPSCALE_PATH, UpscalingServer

NUM_REQUESTS = 3
SIDE = 384
PICTURE_BYTES = SIDE * SIDE * 3

Fields = Callable[[bytes], dict[str, Any]]


def picture() -> bytes:
    """A file that is small and a picture that is not."""
    noise = np.random.default_rng(random.randrange(1 << 30)).integers(0, 256, (8, 8, 3), np.uint8)
    return saved(Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.NEAREST))


def form(**fields: str) -> Fields:
    def made(file: bytes) -> dict[str, Any]:
        return {"files": {"image": ("a.png", file, "image/png")}, "data": fields}

    return made


def body(name: str, *, is_list: bool = False, **fields: Any) -> Fields:
    def made(file: bytes) -> dict[str, Any]:
        return {"json": {name: [data_url(file)] if is_list else data_url(file), **fields}}

    return made


CHAIN = [{"operation": "enlarge"}, {"operation": "matte"}]
SMALL = {"size": "64x64", "num_inference_steps": "2", "strength": "1"}
TASKS = (ImageTask.IMAGE_TO_IMAGE, ImageTask.EDIT, ImageTask.RESTORE)
INFO = image_info(tasks=TASKS, max_pixels=1 << 24, max_restored_pixels=1 << 24)
ROUTES: dict[str, tuple[str, Fields]] = {
    "edit": (EDITS, form(prompt="blue", **SMALL)),
    "edit in JSON": (EDITS, body("image", prompt="blue", size="64x64")),
    "stream of an edit": (EDITS, form(prompt="blue", stream="true", **SMALL)),
    "chain": (EDITS, form(prompt="blue", then=json.dumps(CHAIN))),
    "img2img": (
        "/sdapi/v1/img2img",
        body("init_images", is_list=True, prompt="blue", width=64, height=64),
    ),
    "restoration": (UPSCALE_PATH, form(model=INFO.model, scale="1", denoise="0.5")),
    "matte": (MATTE, form(output="alpha")),
    "upscaling": (UPSCALE_PATH, form(scale="1")),
    "extra-single-image": (
        "/sdapi/v1/extra-single-image",
        body("image", upscaling_resize=1.0, upscaler_1="enlarger"),
    ),
}
"""Every route that decodes pictures: a path and a request."""


def server_of(route: str) -> ImageServer:
    if route in ("upscaling", "extra-single-image"):
        return UpscalingServer(upscaler_info(default_tile=256))
    if route == "chain":
        return ChainServer(INFO, upscaler_info(), matting_info())
    return MattingServer(INFO, matting_info())


def submitted(server: ImageServer) -> list[Any]:
    """What the engine was given, which the fake one keeps; of a chain, in its last stage."""
    is_chain = isinstance(server, ChainServer)
    requests: list[Any] = server.engine.requests
    return server.engine.requests_for("matte") if is_chain else requests


def hold(server: ImageServer) -> None:
    """Have no request end; a chain's may reach its last stage."""
    if isinstance(server, ChainServer):
        server.engine.held = {"cutter"}
    else:
        server.engine.hold()


async def answered(server: ImageServer, caller: Caller) -> None:
    await caller.send(asyncio.Event())
    assert caller.status == 200, caller.answer


async def left(server: ImageServer, caller: Caller) -> None:
    hold(server)
    leaving = asyncio.Event()
    sending = asyncio.create_task(caller.send(leaving))
    await until(lambda: bool(submitted(server)))
    leaving.set()
    await sending
    server.engine.release()


async def cancelled(server: ImageServer, caller: Caller) -> None:
    hold(server)
    sending = asyncio.create_task(caller.send(asyncio.Event()))
    await until(lambda: bool(submitted(server)))
    [one] = (await server.client.get("/v1/requests")).json()["data"]
    assert (await server.client.delete(f"/v1/requests/{one['id']}")).status_code == 200
    await sending
    server.engine.release()


async def failed(server: ImageServer, caller: Caller) -> None:
    if not isinstance(server, UpscalingServer):
        server.engine.failure = Failure()
        await caller.send(asyncio.Event())
        return
    server.engine.hold()
    sending = asyncio.create_task(caller.send(asyncio.Event()))
    await until(lambda: bool(submitted(server)))
    server.engine.kill_worker()
    await sending
    server.engine.release()


async def refused(server: ImageServer, caller: Caller) -> None:
    """Have the engine refuse the request once the pictures are decoded."""
    server.engine.submit_error = ModelNotReady("it is being loaded")
    await caller.send(asyncio.Event())
    server.engine.submit_error = None
    assert caller.status == 503, caller.answer


ENDINGS = [answered, left, cancelled, failed, refused]


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    tracemalloc.stop()
    gc.enable()


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("route", ROUTES)
async def test_pictures_are_given_back(
    route: str,
    ending: Callable[[Any, Caller], Awaitable[None]],
    logs: list[Any],
    uncollected: None,
) -> None:
    server = server_of(route)
    path, fields = ROUTES[route]

    async def one() -> None:
        await ending(server, Caller(server.app, path, **fields(picture())))
        server.engine.requests.clear()
        await until(lambda: not server.engine.live)
        logs.clear()

    await one()  # what is made once is there
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(NUM_REQUESTS):
        await one()
    await asyncio.sleep(0.01)
    after, _ = tracemalloc.get_traced_memory()
    assert after - before < PICTURE_BYTES, (after - before) / PICTURE_BYTES
    assert server.state.admission.num_in_flight() == 0
    pictures = server.state.pictures
    assert pictures.budget.num_taken == pictures.between.num_taken == 0
