"""`POST /v1/images/matte` against a scripted engine."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.contract.matte import MattingOutput, Point
from tests.helpers.server.fake_engine import Failure
from tests.helpers.server.fake_images import image_info
from tests.helpers.server.fake_server import error_of
from tests.helpers.server.image_server import MATTE, MattingServer, data_url, opened, png, saved


@pytest.fixture
async def server() -> MattingServer:
    return MattingServer()


def trimap_png(width: int = 64, height: int = 48) -> bytes:
    levels = np.full((height, width), 128, np.uint8)
    levels[:, : width // 3] = 0
    levels[:, -width // 3 :] = 255
    return saved(Image.fromarray(levels))


async def test_a_cutout_and_what_is_said_of_it(server: MattingServer) -> None:
    response = await server.matte()
    assert response.status_code == 200, response.text
    body = response.json()
    [data] = body.pop("data")
    image = opened(data["b64_json"])
    assert (image.mode, image.size, image.format) == ("RGBA", (64, 48), "PNG")
    assert np.asarray(image)[0, :, 3].tolist() == [0] * 32 + [255] * 32
    assert response.headers["X-Image-Id"] == body.pop("id")
    assert body.pop("created") > 1_700_000_000
    assert body == {
        "background": "transparent",
        "output_format": "png",
        "size": "64x48",
        "model": "cutter",
        "output": "cutout",
        "source": "network",
        "method": "closed_form",
        "unknown_fraction": 0.125,
        "uncertain_fraction": 0.75,
        "solved_size": "64x48",
        "foreground_size": None,
        "warnings": ["a warning"],
    }


async def test_a_form_with_everything(server: MattingServer) -> None:
    response = await server.form(
        {"image": png(), "trimap": trimap_png(), "background_image": png(8, 8)},
        method="closed_form",
        output="composite",
        model="cutter",
        priority="0",
        output_format="webp",
        output_compression="50",
    )
    body = response.json()
    assert response.status_code == 200, body
    assert opened(body["data"][0]["b64_json"]).format == "WEBP"
    assert (body["source"], body["background"]) == ("trimap", "opaque")
    [request] = server.engine.requests
    assert request.output == MattingOutput.COMPOSITE
    assert (request.trimap.channels, request.trimap.data[0], request.trimap.data[30]) == (1, 0, 128)
    assert request.background.width == 8


async def test_marks_in_a_form_are_json(server: MattingServer) -> None:
    response = await server.form(
        {"image": png()},
        box="[1, 2, 30, 40]",
        points='[{"x": 3, "y": 4}, {"x": 5, "y": 6, "label": 0}]',
    )
    assert response.status_code == 200, response.text
    [request] = server.engine.requests
    assert request.box == (1, 2, 30, 40)
    assert request.points == [Point(x=3, y=4, is_subject=True), Point(x=5, y=6, is_subject=False)]


async def test_jpeg_lies_over_the_colour(server: MattingServer) -> None:
    body = (await server.matte(output_format="jpeg", background_color="#00f")).json()
    assert (body["background"], body["output"]) == ("opaque", "cutout")
    image = opened(body["data"][0]["b64_json"])
    assert image.mode == "RGB"
    left = np.asarray(image)[:, 8].astype(int)
    assert np.abs(left - [0, 0, 255]).max() < 12


async def test_a_colour_means_a_composite(server: MattingServer) -> None:
    body = (await server.matte(background_color="#102030")).json()
    image = opened(body["data"][0]["b64_json"])
    assert (body["output"], image.mode) == ("composite", "RGB")
    assert image.getpixel((0, 0)) == (16, 32, 48)


@pytest.mark.parametrize("output", ["alpha", "trimap"])
async def test_one_channel(server: MattingServer, output: str) -> None:
    for output_format in ("png", "jpeg", "webp"):
        body = (await server.matte(output=output, output_format=output_format)).json()
        image = opened(body["data"][0]["b64_json"])
        assert image.size == (64, 48)
        assert image.convert("L").getpixel((60, 40)) == 255


async def test_by_url(server: MattingServer) -> None:
    [data] = (await server.matte(response_format="url")).json()["data"]
    assert data["b64_json"] is None
    file = await server.client.get(data["url"])
    assert (file.status_code, file.headers["content-type"]) == (200, "image/png")


@pytest.mark.parametrize(
    ("body", "param", "text"),
    [
        ({"image": None}, "image", ""),
        ({"image": "https://example.com/a.png"}, "image", "does not fetch"),
        ({"image": data_url(b"GIF89a")}, "image", "GIF"),
        ({"image": data_url(png()[:60])}, "image", "truncated"),
        ({"image": data_url(png(300, 300))}, "image", "at most"),
        ({"trimap": data_url(b"\x89PNG\r\n\x1a\n")}, "trimap", ""),
        ({"trimap": data_url(png()), "box": [0, 0, 4, 4]}, "box", "trimap"),
        ({"box": [1, 2, 3]}, "box", ""),
        ({"box": [1, 2, 3, -4]}, None, ""),
        ({"box": "everything"}, "box", ""),
        ({"points": [{"x": 1}]}, None, ""),
        ({"points": [{"x": 1, "y": 1, "label": 2}]}, None, ""),
        ({"points": [{"x": 1, "y": 1, "label": False}]}, None, ""),
        ({"points": [{"x": 1, "y": 1}] * 65}, "points", ""),
        ({"method": "magic"}, "method", ""),
        ({"output": "everything"}, "output", ""),
        ({"background_color": "red"}, "background_color", "#rrggbb"),
        ({"background_image": data_url(png()), "output": "alpha"}, "background_image", "alpha"),
        (
            {"background_image": data_url(png()), "background_color": "#fff"},
            "background_color",
            "cannot be combined",
        ),
        ({"output_compression": 50}, "output_compression", "png"),
        ({"method": "knn"}, "method", "removed; alpha is computed with closed_form"),
        ({"method": "learning_based"}, "method", "leave method out or send closed_form"),
        ({"method": "sharp"}, "method", "closed_form"),
        ({"n": 2}, "n", ""),
        ({"stream": True}, "stream", ""),
        ({"mask": data_url(png())}, "mask", ""),
        ({"priority": 1}, "priority", ""),
        ({"model": "nobody"}, "model", "not served"),
    ],
)
async def test_what_cannot_be_done_is_refused(
    body: dict[str, Any], param: str | None, text: str
) -> None:
    server = MattingServer(max_image_input_pixels=80_000)
    error = error_of(await server.matte(**body), 404 if "model" in body else 400)
    if param is not None:
        assert error["param"] == param
    assert text in error["message"]
    assert not server.engine.requests


@pytest.mark.parametrize(
    ("files", "fields", "param"),
    [
        ({}, {"output": "alpha"}, "image"),
        ({"image": b""}, {}, "image"),
        ({"image": png(), "trimap": b""}, {}, "trimap"),
        ({"image": png()}, {"box": "{}"}, "box"),
        ({"image": png()}, {"points": "[" * 70_000}, "points"),
        ({"image": png()}, {"points": "[[[["}, "points"),
        ({"image": png()}, {"output_compression": "many"}, "output_compression"),
    ],
)
async def test_bad_forms(
    server: MattingServer, files: dict[str, bytes], fields: dict[str, str], param: str
) -> None:
    if not files:
        plain = {name: (None, text) for name, text in fields.items()}
        response = await server.client.post(MATTE, files=plain)
    else:
        response = await server.form(files, **fields)
    assert error_of(response)["param"] == param


async def test_the_engines_refusal_is_the_clients_fault(server: MattingServer) -> None:
    server.engine.failure = Failure(code="invalid_value", message="no subject", param="trimap")
    assert error_of(await server.matte())["param"] == "trimap"
    server.engine.failure = Failure(code="request_failed", message="broken")
    error_of(await server.matte(), 500)


async def test_metrics(server: MattingServer) -> None:
    await server.matte()
    text = (await server.client.get("/metrics")).text
    assert 'tandem_matting_images_total{model_name="cutter",outcome="completed"} 1.0' in text
    assert 'tandem_matting_pixels_total{model_name="cutter"} 100.0' in text


async def test_the_models_card(server: MattingServer) -> None:
    card = (await server.client.get("/v1/models/cutter")).json()
    assert (card["architecture"], card["side"]) == ("U2Net", 320)
    assert card["methods"] == ["closed_form"]


async def test_a_model_is_loaded_when_first_asked_for() -> None:
    server = MattingServer(image_info())
    body = (await server.matte()).json()
    assert body["model"] == "u2netp"
