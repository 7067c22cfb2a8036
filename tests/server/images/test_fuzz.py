"""Whatever a client sends is answered below 500, in the one shape."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from server.protocol.images import ImageEditRequest
from tests.helpers.server.image_server import (
    EDITS,
    GENERATIONS,
    VARIATIONS,
    ImageServer,
    data_url,
    mask_png,
    png,
)

NAMES = [
    *ImageEditRequest.model_fields,
    "image",
    "image[]",
    "outpaint[left]",
    "outpaint[x]",
    "lora",
    "loras[][name]",
    "loras[][scale]",
]
FUZZ = settings(
    max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)

texts = st.one_of(
    st.sampled_from(
        ["", "1", "0", "-1", "64x64", "true", "auto", "png", "url", "1e3", "nan", "x", "{}", "[]"]
    ),
    st.text(max_size=20),
    st.integers().map(str),
    st.floats().map(str),
)
values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        texts,
        st.just(png()),
    ).map(lambda value: data_url(value) if isinstance(value, bytes) else value),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["image_url", "file_id", "left", "top", "data"]), inner, max_size=3
        ),
    ),
    max_leaves=5,
)
plausible = st.fixed_dictionaries(
    {"prompt": st.sampled_from(["a circle", "", " "])},
    optional={
        "n": st.integers(0, 3),
        "size": st.sampled_from(["auto", "64x64", "32x40", "33x33", "512x512"]),
        "seed": st.sampled_from([0, 1, 2**63 - 1, 2**63, -1]),
        "strength": st.floats(0, 1.1),
        "num_inference_steps": st.integers(0, 6),
        "stream": st.booleans(),
        "partial_images": st.integers(0, 3),
        "output_format": st.sampled_from(["png", "jpeg", "webp"]),
        "output_compression": st.integers(0, 100),
        "response_format": st.sampled_from(["url", "b64_json"]),
        "task": st.sampled_from(["edit", "inpaint", "image_to_image"]),
        "outpaint": st.fixed_dictionaries({"left": st.integers(0, 9)}),
        "mask_mode": st.sampled_from(["auto", "alpha", "luminance"]),
        "crop_to_mask": st.booleans(),
    },
)
files = st.one_of(
    st.sampled_from([png(), png(48, 64), png(1, 1), mask_png(), png()[:50], b""]),
    st.binary(max_size=64),
    st.tuples(st.just(mask_png()), st.integers(0, 200), st.integers(0, 255)).map(
        lambda t: t[0][: t[1]] + bytes([t[2]]) + t[0][t[1] + 1 :]
    ),
)


def check(response: httpx.Response) -> None:
    assert response.status_code < 500, response.text
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        assert len(response.json()["error"]["message"]) < 1000


class Sender:
    """One server for all examples of a test, in an event loop of its own."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._server = ImageServer()

    def __call__(self, path: str, **request: Any) -> httpx.Response:
        async def once() -> httpx.Response:
            return await self._server.client.post(path, **request)

        response = self._runner.run(once())
        assert self._server.app.state.tandem.admission.num_in_flight() == 0
        return response

    def close(self) -> None:
        self._runner.run(self._server.client.aclose())
        self._runner.close()


@pytest.fixture
def send() -> Iterator[Sender]:
    sender = Sender()
    yield sender
    sender.close()


@pytest.mark.parametrize("path", [GENERATIONS, EDITS, VARIATIONS])
def test_json_bodies(send: Sender, path: str) -> None:
    @FUZZ
    @given(st.dictionaries(st.sampled_from(NAMES), values, max_size=5), plausible, st.booleans())
    @example({"images": [{"image_url": data_url(png())}]}, {"prompt": "x"}, True)
    def run(odd: dict[str, Any], body: dict[str, Any], with_image: bool) -> None:
        images = {"images": [{"image_url": data_url(png())}]} if with_image else {}
        if path == GENERATIONS:
            images = {}
        check(send(path, json=body | images | odd))

    run()


def test_plausible_json_is_mostly_answered(send: Sender) -> None:
    """The fuzz above would prove little if everything were refused."""
    statuses = []

    @FUZZ
    @given(plausible)
    def run(body: dict[str, Any]) -> None:
        image = {"images": [{"image_url": data_url(png())}]}
        response = send(
            EDITS,
            json={k: v for k, v in body.items() if k in ("n", "seed")} | image | {"prompt": "x"},
        )
        check(response)
        statuses.append(response.status_code)

    run()
    assert statuses.count(200) > len(statuses) / 4


@pytest.mark.parametrize("path", [EDITS, VARIATIONS])
def test_forms(send: Sender, path: str) -> None:
    @FUZZ
    @given(
        st.lists(st.tuples(st.sampled_from(NAMES), texts), max_size=5),
        st.lists(st.tuples(st.sampled_from(["image", "image[]", "mask", "n", "x"]), files)),
        plausible,
    )
    def run(
        fields: list[tuple[str, str]], parts: list[tuple[str, bytes]], body: dict[str, Any]
    ) -> None:
        data: dict[str, Any] = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in body.items()
        }
        for name, value in fields:
            data[name] = value.encode("utf-8", "replace").decode()
        uploads = [(name, ("../x\r\ny", content, "image/png")) for name, content in parts]
        check(send(path, data=data, files=uploads or {"image": png()}))

    run()


def test_raw_forms(send: Sender) -> None:
    @FUZZ
    @given(st.binary(max_size=200), st.integers(0, 400), st.text("B-=;\"' ", max_size=10))
    def run(noise: bytes, position: int, boundary: str) -> None:
        head = b'--B\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n'
        body = head + b'--B\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + png()
        body += b"\r\n--B--\r\n"
        body = body[:position] + noise + body[position:]
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary or 'B'}"}
        check(send(EDITS, content=body, headers=headers))

    run()


def test_raw_json(send: Sender) -> None:
    @FUZZ
    @given(
        st.binary(max_size=100) | st.text(max_size=50).map(lambda text: json.dumps(text).encode())
    )
    def run(body: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        check(send(GENERATIONS, content=body, headers=headers))

    run()
