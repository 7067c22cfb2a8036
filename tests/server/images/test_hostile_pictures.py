"""Files that take hours, gigabytes or a crash to decode cost their sender an error, and nobody else
anything."""

import asyncio
import io
import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import psutil
import pytest
from PIL import Image

from engine.errors import InvalidParameter
from server.images import picture_processes, pictures
from server.images.header import MAX_CHUNKS, MAX_SCANS, MAX_SEGMENTS
from server.images.picture_processes import PictureProcesses
from server.images.picture_wire import Question, Reading
from tests.helpers.server.caller import Caller
from tests.helpers.server.fake_images import image_info, matting_info
from tests.helpers.server.fake_server import error_of, until
from tests.helpers.server.hostile_files import (
    frames,
    jpeg_of_scans,
    jpeg_of_segments,
    png_of_chunks,
    png_of_size,
    png_of_texts,
    truncated,
)
from tests.helpers.server.image_server import (
    EDITS,
    MATTE,
    VARIATIONS,
    MattingServer,
    data_url,
    mask_png,
    png,
)
from tests.helpers.server.upscaling_server import UPSCALE_PATH, UpscalingServer

PNG_INFO = "/sdapi/v1/png-info"

Body = Callable[[str], dict[str, Any]]
ROUTES: dict[str, tuple[str, Body]] = {
    "edit": (EDITS, lambda file: {"prompt": "x", "image": file}),
    "mask": (EDITS, lambda file: {"prompt": "x", "image": data_url(png()), "mask": file}),
    "variation": (VARIATIONS, lambda file: {"image": file}),
    "img2img": ("/sdapi/v1/img2img", lambda file: {"prompt": "x", "init_images": [file]}),
    "matte": (MATTE, lambda file: {"image": file}),
    "trimap": (MATTE, lambda file: {"image": data_url(png()), "trimap": file}),
    "background": (
        MATTE,
        lambda file: {
            "image": data_url(png()),
            "background_image": file,
            "output": "composite",
        },
    ),
    "upscaling": (UPSCALE_PATH, lambda file: {"image": file}),
    "png-info": (PNG_INFO, lambda file: {"image": file}),
}
"""Every route that reads pictures, and a body with the file."""
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "scans": (lambda: jpeg_of_scans(random.randint(MAX_SCANS + 1, 30_000)), "scans; at most"),
    "segments": (lambda: jpeg_of_segments(MAX_SEGMENTS + random.randrange(9999)), "broken"),
    "chunks": (
        lambda: png_of_chunks(MAX_CHUNKS + random.randrange(9999)),
        "chunks, the limit; save",
    ),
    "size": (lambda: png_of_size(random.randint(4097, 1 << 31), 4096), "scale it down"),
    "sides": (lambda: png_of_size(16_385, random.randint(1, 99)), "scale it down"),
    "gif": (lambda: frames("GIF", random.randint(2, 60)), "GIF"),
    "webp": (lambda: frames("WEBP", random.randint(2, 60)), "animated"),
    "texts": (lambda: png_of_texts(random.randint(70, 99), 1 << 20), "broken"),
}


def server_of(route: str) -> Any:
    return (
        UpscalingServer() if route == "upscaling" else MattingServer(image_info(), matting_info())
    )


@pytest.mark.parametrize("route", ROUTES)
async def test_every_route_refuses_them(route: str) -> None:
    server = server_of(route)
    path, body = ROUTES[route]
    for make, words in FILES.values():
        response = await server.client.post(path, json=body(data_url(make())))
        assert response.status_code == 400, response.text
        assert words in response.text
    for format in ("PNG", "JPEG", "WEBP"):
        response = await server.client.post(path, json=body(data_url(truncated(format))))
        # What is written in a file may be whole where its picture is not.
        assert response.status_code == 400 or path == PNG_INFO, response.text
    assert not server.engine.requests


@pytest.fixture
def processes() -> Iterator[PictureProcesses]:
    own = PictureProcesses(1 << 22)
    yield own
    own.close()


def question(num_pixels: int, cpu_s: int = 60) -> Question:
    return Question(
        reading=Reading.IMAGE, param="image", max_pixels=num_pixels, max_side=1 << 15, cpu_s=cpu_s
    )


def slow_file() -> bytes:
    """Seconds of work, within all bounds."""
    return jpeg_of_scans(MAX_SCANS, 1 << 11)


async def test_scans_within_the_bound_are_decoded(processes: PictureProcesses) -> None:
    _, pixels = await processes.read(question(64 * 64), jpeg_of_scans(MAX_SCANS))
    assert len(pixels) == 64 * 64 * 3


async def test_a_file_that_takes_too_long_is_refused_and_the_next_one_is_read() -> None:
    processes = PictureProcesses(1 << 26)
    with pytest.raises(InvalidParameter, match=r"image takes more than .* s .*to decode"):
        await processes.read(question(1 << 26, cpu_s=1), jpeg_of_scans(MAX_SCANS, 1 << 13))
    _, pixels = await processes.read(question(64 * 48), png())
    assert len(pixels) == 64 * 48 * 3
    processes.close()


async def test_a_picture_that_takes_too_much_memory_is_refused(
    processes: PictureProcesses,
) -> None:
    file = io.BytesIO()
    Image.new("L", (1 << 13, 1 << 13)).save(file, "PNG")
    with pytest.raises(InvalidParameter, match="too much memory"):
        await processes.read(question(1 << 26), file.getvalue())
    _, pixels = await processes.read(question(64 * 48), png())
    assert len(pixels) == 64 * 48 * 3


def at_work(before: set[int]) -> list[psutil.Process]:
    """Processes of pictures that have been started since."""
    return [
        child
        for child in psutil.Process().children()
        if child.pid not in before and "server.images.picture_child" in " ".join(child.cmdline())
    ]


async def test_a_crash_is_an_error_and_the_next_picture_is_read(
    processes: PictureProcesses,
) -> None:
    before = {child.pid for child in psutil.Process().children()}
    reading = asyncio.create_task(processes.read(question(1 << 22), slow_file()))
    await until(lambda: bool(at_work(before)))
    os.kill(at_work(before)[0].pid, signal.SIGSEGV)
    with pytest.raises(InvalidParameter, match="the library for such files failed"):
        await reading
    _, pixels = await processes.read(question(64 * 48), png())
    assert len(pixels) == 64 * 48 * 3


@pytest.fixture
async def busy(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Any, list[Any]]]:
    """A server all of whose processes are at work on files that they never finish, and those who
    wait for them."""
    monkeypatch.setattr(pictures, "_CPU_S", 600)
    monkeypatch.setattr(picture_processes, "_GRACE_S", 0.01)
    server = MattingServer(image_info(), matting_info())
    monkeypatch.setattr(server.state.pictures, "_processes", PictureProcesses(1 << 22))
    before = {child.pid for child in psutil.Process().children()}
    data = data_url(slow_file())
    leaving = asyncio.Event()
    callers = [
        Caller(server.app, path, json=body(data))
        for name, (path, body) in ROUTES.items()
        if name != "upscaling"
    ]
    sending = [asyncio.create_task(caller.send(leaving)) for caller in callers]
    await until(lambda: len(at_work(before)) >= 2, timeout_s=60)
    for process in at_work(before):
        process.suspend()
    yield server, [leaving, *sending]
    leaving.set()
    await asyncio.gather(*sending)
    server.state.pictures.close()


async def test_nobody_else_waits_and_who_leaves_frees_the_processes(
    busy: tuple[Any, list[Any]],
) -> None:
    server, [leaving, *sending] = busy
    assert (await server.generate()).status_code == 200
    assert (await server.client.get("/models")).status_code == 200
    assert (await server.client.get("/v1/models")).status_code == 200
    # All of these are done while not one of the hostile ones is.
    assert not any(one.done() for one in sending)
    leaving.set()
    await asyncio.gather(*sending)
    async with asyncio.timeout(60):
        response = await server.edit()
    assert response.status_code == 200, response.text


async def test_a_request_that_waits_for_memory_can_be_seen_and_cancelled() -> None:
    server = MattingServer(image_info(), matting_info(), max_decoded_image_bytes=64 * 48 * 4)
    server.engine.hold()
    first = asyncio.create_task(server.edit())
    await until(lambda: bool(server.engine.requests_for("draw")))
    waiting = [asyncio.create_task(server.edit()), asyncio.create_task(server.matte())]
    live = server.state.live_requests
    await until(lambda: len(live.of(None)) == 3)
    listed = (await server.client.get("/v1/requests")).json()["data"]
    assert [one["status"] for one in listed[1:]] == ["queued", "queued"]
    for one in listed[1:]:
        assert (await server.client.delete(f"/v1/requests/{one['id']}")).status_code == 200
    for task in waiting:
        error_of(await task, 499)
    server.engine.release()
    assert (await first).status_code == 200
    assert (len(server.engine.requests_for("draw")), len(server.engine.requests_for("matte"))) == (
        1,
        0,
    )


async def test_pictures_that_never_fit_are_refused_and_others_take_turns() -> None:
    server = MattingServer(image_info(), matting_info(), max_decoded_image_bytes=64 * 48 * 4)
    message = error_of(await server.edit(png(64, 49)))["message"]
    assert "max_decoded_image_bytes" in message
    error_of(await server.edit(png(), mask_png()))
    answers = await asyncio.gather(
        *(server.edit() for _ in range(5)), *(server.matte() for _ in range(5))
    )
    assert {answer.status_code for answer in answers} == {200}
