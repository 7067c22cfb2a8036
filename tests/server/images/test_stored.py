"""Results by `url`: served to whoever has the name, for a while, within a bound."""

import socket

import pytest

from engine.errors import InvalidParameter
from server.images.store import ImageStore
from tests.helpers.clock import Clock
from tests.helpers.server.fake_server import answer_of, assert_refused, error_of
from tests.helpers.server.image_server import (
    EDITS,
    GENERATIONS,
    ImageServer,
    data_url,
    named_events,
    opened,
    png,
)

KEY = {"Authorization": "Bearer secret"}
PICTURE = data_url(png())


async def test_a_url_serves_the_image_without_a_key() -> None:
    server = ImageServer(api_keys=["secret"])
    body = {"prompt": "x", "response_format": "url", "output_format": "webp", "n": 2}
    answer = (await server.client.post("/v1/images/generations", json=body, headers=KEY)).json()
    urls = [image["url"] for image in answer["data"]]
    assert len(set(urls)) == 2 and all(image["b64_json"] is None for image in answer["data"])
    for url in urls:
        assert url.startswith("http://test/v1/images/files/") and url.endswith(".webp")
        response = await server.client.get(url)
        assert response.status_code == 200
        assert response.headers["content-type"] == "image/webp"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.content[8:12] == b"WEBP"
        assert (await server.client.head(url)).headers["content-length"] == str(
            len(response.content)
        )


async def test_only_files_are_open() -> None:
    server = ImageServer(api_keys=["secret"])
    for method, path, status in (
        ("GET", "/v1/images/files/nope.png", 404),
        ("POST", "/v1/images/files/nope.png", 401),
        ("DELETE", "/v1/images/files/nope.png", 401),
        ("GET", "/v1/images/files", 401),
        ("GET", "/v1/images/files/", 401),
        ("GET", "/v1/images/files/../models", 401),
        ("GET", "/v1/images/files/%2e%2e%2fmodels", 401),
        ("GET", "/v1/images/files/a/b", 401),
        ("GET", "/v1/images/img-1", 401),
        ("DELETE", "/v1/images/img-1", 401),
        ("POST", "/v1/images/generations", 401),
        ("POST", "/v1/images/edits", 401),
    ):
        response = await server.client.request(method, path)
        assert response.status_code == status, f"{method} {path}"


async def test_urls_carry_the_prefix_of_the_proxy() -> None:
    server = ImageServer(root_path="/llm")
    answer = (
        await server.post("/llm/v1/images/generations", prompt="x", response_format="url")
    ).json()
    url = answer["data"][0]["url"]
    assert url.startswith("http://test/llm/v1/images/files/")
    assert (await server.client.get(url)).status_code == 200


BY_URL = {"prompt": "x", "response_format": "url"}


async def url_of(server: ImageServer, headers: dict[str, str]) -> str:
    answer = answer_of(await server.client.post(GENERATIONS, json=BY_URL, headers=headers))
    url: str = answer["data"][0]["url"]
    return url


async def test_urls_have_no_strangers_name() -> None:
    server = ImageServer(host="10.1.2.3")
    own = ["localhost", "127.0.0.1:8000", "[::1]:9", "10.1.2.3:8000", socket.gethostname(), "test"]
    for name in own:
        assert (await url_of(server, {"Host": name})).startswith(f"http://{name}/v1/images/files/")
    drawn = len(server.engine.requests)
    routes = {GENERATIONS: BY_URL, EDITS: BY_URL | {"image": PICTURE}}
    for name in ("evil.example", "localhost.evil.example", "10.1.2.4", "a@localhost", "[::1", ""):
        for path, body in routes.items():
            error = error_of(await server.client.post(path, json=body, headers={"Host": name}))
            assert error["param"] == "response_format" and "--public-url" in error["message"], name
    assert len(server.engine.requests) == drawn, "refused before it is drawn"


async def test_a_trusted_proxy_says_the_name() -> None:
    server = ImageServer(root_path="/llm")
    asked = {"X-Forwarded-Proto": "https", "Host": "ai.example"}
    assert (await url_of(server, asked)).startswith("https://ai.example/llm/v1/images/files/")
    asked |= {"Host": "127.0.0.1:8000", "X-Forwarded-Host": "ai.example:444"}
    assert (await url_of(server, asked)).startswith("https://ai.example:444/llm/v1/images/files/")
    broken = asked | {"Host": "[::1"}
    assert (await url_of(server, broken)).startswith("https://ai.example:444/llm/v1/images/files/")
    # Who is no proxy of ours may claim to be one.
    server = ImageServer(forwarded_allow_ips=("10.0.0.0/8",))
    assert (await url_of(server, asked)).startswith("http://127.0.0.1:8000/v1/images/files/")
    refused = asked | {"Host": "ai.example"}
    error_of(await server.client.post(GENERATIONS, json=BY_URL, headers=refused))


async def test_the_public_url_begins_all_urls() -> None:
    server = ImageServer(public_url="https://ai.example:444/pictures/", root_path="/llm")
    for host in ("evil.example", "localhost"):
        url = await url_of(server, {"Host": host})
        assert url.startswith("https://ai.example:444/pictures/v1/images/files/")
    for wrong in (
        "ai.example",
        "ftp://ai.example",
        "https://u@ai.example",
        "https://a/?b",
        "https://",
    ):
        with pytest.raises(ValueError, match="must be http:// or https://"):
            ImageServer(public_url=wrong)


async def test_edits_by_url(server: ImageServer) -> None:
    answer = (await server.edit(response_format="url")).json()
    assert (await server.client.get(answer["data"][0]["url"])).status_code == 200


async def test_a_stream_by_url_ends_each_image_with_its_link(server: ImageServer) -> None:
    fields = {"response_format": "url", "stream": True, "partial_images": 1, "n": 2}
    events = named_events((await server.generate(**fields)).text)
    partials = [data for name, data in events if name.endswith("partial_image")]
    ends = [data for name, data in events if name.endswith("completed")]
    assert (len(partials), len(ends)) == (2, 2)
    assert all(opened(data["b64_json"]) for data in partials), "previews are not kept"
    for data in ends:
        assert data["b64_json"] is None
        file = await server.client.get(data["url"])
        assert (file.status_code, file.headers["content-type"]) == (200, "image/png")
    events = named_events((await server.edit(response_format="url", stream="true")).text)
    assert (await server.client.get(events[-1][1]["url"])).status_code == 200
    events = named_events((await server.generate(stream=True)).text)
    assert events[-1][1]["url"] is None and opened(events[-1][1]["b64_json"])


@pytest.mark.parametrize("stream", [False, True])
async def test_what_cannot_be_kept_is_refused_before_it_is_drawn(stream: bool) -> None:
    for settings, words in (
        ({"image_store_bytes": 0}, "stores no images"),
        ({"image_store_bytes": 3 * 64 * 64 * 4 - 1}, "49152 bytes"),
    ):
        server = ImageServer(**settings)
        response = await server.generate(n=3, response_format="url", stream=stream)
        assert_refused(response, "response_format", words)
        assert server.engine.requests == []
        answer = (await server.generate(n=3, response_format="b64_json")).json()
        assert opened(answer["data"][2]["b64_json"]).size == (64, 64)


def test_files_expire() -> None:
    clock = Clock()
    store = ImageStore(max_bytes=100, ttl_s=60, clock=clock)
    name = store.put(b"abc", "png")
    clock.now_s += 59
    stored = store.get(name)
    assert stored is not None and stored.data == b"abc"
    assert store.seconds_left(name) == 1
    clock.now_s += 1
    assert store.get(name) is None
    assert (len(store), store.num_bytes) == (0, 0)


def test_the_oldest_make_room() -> None:
    store = ImageStore(max_bytes=10, ttl_s=60)
    names = [store.put(bytes(4), "png") for _ in range(3)]
    assert [store.get(name) is not None for name in names] == [False, True, True]
    assert store.num_bytes == 8


def test_names_are_long_and_random() -> None:
    store = ImageStore(max_bytes=1000, ttl_s=60)
    names = {store.put(b"x", "png") for _ in range(20)}
    assert len(names) == 20 and all(len(name) == 48 + 4 for name in names)


def test_room_is_checked_for_all_images_of_a_request() -> None:
    store = ImageStore(max_bytes=800, ttl_s=60)
    store.check_room(2, 100)
    with pytest.raises(InvalidParameter, match="1200 bytes"):
        store.check_room(3, 100)
