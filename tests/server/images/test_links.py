"""Links to pictures: only allowed hosts are asked, and nothing else in their name."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from fastapi import FastAPI
from fastapi.responses import RedirectResponse, Response, StreamingResponse

from engine.errors import EngineError
from server.images import links
from server.images.links import PictureLinks
from server.images.store import ImageStore
from server.protocol.image_inputs import ImageReference, UploadedImage
from server.settings import Settings
from tests.helpers.server.fake_images import image_info
from tests.helpers.server.fake_server import error_of
from tests.helpers.server.image_server import ImageServer, png
from tests.helpers.server.listening import listening

FILE = png()
LIMIT = len(FILE) + 100


@pytest.fixture
async def site() -> AsyncIterator[str]:
    """A host with pictures; gives its URL."""
    app = FastAPI()
    ends = asyncio.Event()

    @app.get("/a.png")
    async def picture() -> Response:
        return Response(FILE, media_type="text/html")

    @app.get("/to")
    async def redirect(url: str) -> Response:
        return RedirectResponse(url)

    @app.get("/large")
    async def large() -> Response:
        async def parts() -> AsyncIterator[bytes]:
            for _ in range(LIMIT // 100 + 1):
                yield bytes(100)
            await ends.wait()

        return StreamingResponse(parts())

    @app.get("/slow")
    async def slow() -> Response:
        await ends.wait()
        return Response(FILE)

    async with listening(app) as url:
        yield url
        ends.set()


def followed(hosts: tuple[str, ...], url: str) -> "asyncio.Task[ImageReference]":
    store = ImageStore(max_bytes=1 << 20, ttl_s=60)
    one = PictureLinks(hosts, store, LIMIT)
    reference = ImageReference(image_url=url, file_id=None)
    return asyncio.ensure_future(one.follow(reference, "image 7"))


async def test_listed_hosts_are_asked(site: str) -> None:
    for url in (f"{site}/a.png", f"{site}/to?url=/a.png", f"{site}/to?url={site}/a.png"):
        found = await followed(("127.0.0.1",), url)
        assert isinstance(found, UploadedImage) and found.data == FILE
    by_name = site.replace("127.0.0.1", "LocalHost")
    found = await followed(("localhost", "127.0.0.1"), f"{by_name}/a.png")
    assert isinstance(found, UploadedImage) and found.data == FILE


async def test_what_is_no_link_stays() -> None:
    for text in ("data:image/png;base64,AAAA", "AAAA", "file:///etc/passwd", "", "ftp://a/b.png"):
        assert (await followed(("a",), text)).image_url == text


async def test_refusals(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "_TIMEOUT_S", 2.0)
    by_name = site.replace("127.0.0.1", "localhost")
    port = site.rpartition(":")[2]
    local = ("127.0.0.1",)
    cases: list[tuple[tuple[str, ...], str, str]] = [
        ((), f"{site}/a.png", "does not fetch links from 127.0.0.1"),
        (("example.com",), f"{site}/a.png", "--allowed-media-domains"),
        (local, f"{by_name}/a.png", "does not fetch links from localhost"),
        (("localhost",), f"{by_name}/a.png", "an address that is not public"),
        (local, f"http://u:p@127.0.0.1:{port}/a.png", "does not fetch links"),
        (local, f"http://127.0.0.1.example.com:{port}/a.png", "does not fetch links"),
        (local, f"http://2130706433:{port}/a.png", "does not fetch links"),
        (local, f"{site}/to?url={by_name}/a.png", "does not fetch links from localhost"),
        (local, f"{site}/to?url=file:///etc/passwd", "does not fetch links"),
        (local, f"{site}/none", "status 404"),
        (local, f"{site}/large", f"more than {LIMIT} bytes"),
        (local, f"{site}/slow", "did not arrive within 2 s"),
        (local, "http://127.0.0.1:1/a.png", "cannot be fetched"),
        (local, "http://", "does not fetch links"),
        (local, "http://[::1", "cannot be fetched"),
        (local, "http://127.0.0.1:99999/", "cannot be fetched"),
    ]
    random.shuffle(cases)
    for hosts, url, said in cases:
        with pytest.raises(EngineError) as caught:
            await followed(hosts, url)
        assert said in caught.value.message, url
        assert caught.value.param == "image 7"


async def test_redirects_end(site: str) -> None:
    url = f"{site}/a.png"
    for _ in range(4):
        url = str(links.httpx.URL(f"{site}/to", params={"url": url}))
    with pytest.raises(EngineError, match="redirected more than 3 times"):
        await followed(("127.0.0.1",), url)


async def test_whoever_leaves_stops_the_fetch(site: str) -> None:
    task = followed(("127.0.0.1",), f"{site}/slow")
    await asyncio.sleep(0.05)
    task.cancel()
    with suppress(asyncio.CancelledError, EngineError):
        await task
    assert task.done()


async def test_edits_follow_links_by_the_same_rules(site: str) -> None:
    body = {"prompt": "x", "image": f"{site}/a.png"}
    server = ImageServer(image_info(), allowed_media_domains=["127.0.0.1"])
    answer = await server.post("/v1/images/edits", **body)
    assert answer.status_code == 200, answer.text
    assert server.last.images[0].width == 64
    drawn = (await server.generate(response_format="url")).json()["data"][0]["url"]
    for settings in ({}, {"allowed_media_domains": ["127.0.0.1"], "offline": True}):
        server = ImageServer(image_info(), **settings)
        answer = await server.post("/v1/images/edits", **body)
        assert "--allowed-media-domains" in error_of(answer)["message"]
    answer = await server.post("/v1/images/edits", prompt="x", image=drawn)
    assert "does not fetch links from test" in error_of(answer)["message"]
    assert Settings(allowed_media_domains="a.example, b.example").allowed_media_domains == (
        "a.example",
        "b.example",
    )
