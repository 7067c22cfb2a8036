"""`POST /v1/images/upscale`: what is taken, what is refused and how, what comes back."""

import asyncio
import base64
import random
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.helpers.pictures import measure
from tests.helpers.server.fake_images import upscaler_info
from tests.helpers.server.fake_server import error_of
from tests.helpers.server.image_server import data_url, named_events, opened, png, saved
from tests.helpers.server.upscaling_server import UPSCALE_PATH, UpscalingServer


@pytest.fixture
async def server() -> UpscalingServer:
    return UpscalingServer()


def doubled(file: bytes, mode: str = "RGB") -> Any:
    import io

    array = np.asarray(Image.open(io.BytesIO(file)).convert(mode))
    return array.repeat(2, 0).repeat(2, 1)


def pixels_of(b64: str) -> Any:
    return np.asarray(opened(b64))


async def test_a_form(server: UpscalingServer) -> None:
    response = await server.send()
    assert response.status_code == 200, response.text
    body = response.json()
    assert (pixels_of(body["data"][0]["b64_json"]) == doubled(png())).all()
    assert body["id"] == response.headers["x-image-id"]
    assert body["data"][0]["url"] is None
    facts = ("model", "size", "scale", "tile", "overlap", "exact", "num_tiles", "output_format")
    found = [body[name] for name in facts]
    assert found == ["enlarger", "128x96", 2.0, 32, 8, True, body["num_tiles"], "png"]
    assert body["num_tiles"] > 1
    assert body["warnings"] == []


async def test_json(server: UpscalingServer) -> None:
    for image in (data_url(png()), {"image_url": data_url(png())}):
        response = await server.post(
            UPSCALE_PATH, image=image, tile=64, overlap=16, model="enlarger", scale=None
        )
        answer = response.json()
        assert (pixels_of(answer["data"][0]["b64_json"]) == doubled(png())).all()
        assert (answer["tile"], answer["overlap"], answer["exact"]) == (64, 16, False)


async def test_alpha_comes_back(server: UpscalingServer) -> None:
    file = png(mode="RGBA")
    answer = (await server.send(file)).json()
    assert (pixels_of(answer["data"][0]["b64_json"]) == doubled(file, "RGBA")).all()


@pytest.mark.parametrize(("scale", "size"), [("1", "64x48"), ("1.5", "96x72"), ("2", "128x96")])
async def test_scales(server: UpscalingServer, scale: str, size: str) -> None:
    answer = (await server.send(scale=scale)).json()
    assert answer["size"] == size
    width, height = map(int, size.split("x"))
    assert pixels_of(answer["data"][0]["b64_json"]).shape == (height, width, 3)


@pytest.mark.parametrize("format", ["jpeg", "webp"])
async def test_formats(server: UpscalingServer, format: str) -> None:
    answer = (await server.send(output_format=format, output_compression="60")).json()
    assert opened(answer["data"][0]["b64_json"]).format == format.upper()


async def test_every_answer_says_how_far_it_agrees_with_the_image(server: UpscalingServer) -> None:
    answer = (await server.send()).json()
    result = pixels_of(answer["data"][0]["b64_json"])
    expected = measure(result, pixels_of(base64.b64encode(png()).decode()))
    assert answer["consistency"] == {
        "psnr_db": pytest.approx(expected.psnr_db, abs=0.01),
        "rms_error": pytest.approx(expected.rms_error, abs=0.01),
        "share_changed": pytest.approx(expected.share_changed, abs=0.01),
    }
    assert (answer["num_faces"], answer["heat_map"]) == (None, None)
    events = named_events((await server.send(stream="true")).text)
    assert events[-1][1]["consistency"] == answer["consistency"]


@pytest.mark.parametrize("stream", ["false", "true"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
async def test_closer_to_the_image(server: UpscalingServer, mode: str, stream: str) -> None:
    """The engine repeats pixels, which made smaller again is not the image."""
    levels = bytes(random.choices(range(60, 200), k=64 * 48 * len(mode)))
    file = saved(Image.frombytes(mode, (64, 48), levels))
    before = (await server.send(file)).json()
    response = await server.send(
        file, fidelity="1", face_guard="1", heat_map="true", stream=stream, tile="16"
    )
    after = response.json() if stream == "false" else named_events(response.text)[-1][1]
    assert after["consistency"]["psnr_db"] > before["consistency"]["psnr_db"] + 3
    assert after["num_faces"] == 0
    assert opened(after["heat_map"]).size == (64, 48)
    image = after["b64_json"] if stream == "true" else after["data"][0]["b64_json"]
    plain = before["data"][0]["b64_json"]
    assert pixels_of(image).shape == pixels_of(plain).shape
    assert (pixels_of(image) != pixels_of(plain)).any()


async def test_results_by_url(server: UpscalingServer) -> None:
    answer = (await server.send(response_format="url")).json()
    [image] = answer["data"]
    assert image["b64_json"] is None
    file = await server.client.get(image["url"])
    assert file.headers["content-type"] == "image/png"
    assert file.content


async def test_a_stream(server: UpscalingServer) -> None:
    response = await server.send(stream="true", partial_images="2")
    assert response.headers["content-type"].startswith("text/event-stream")
    events = named_events(response.text)
    names = [name for name, _ in events]
    assert all(data["type"] == name for name, data in events)
    tiles = [data for name, data in events if name == "image_upscale.progress"]
    assert [data["tile"] for data in tiles] == list(range(1, tiles[0]["num_tiles"] + 1))
    assert tiles[-1]["progress"] == 1.0
    previews = [data for name, data in events if name == "image_upscale.partial_image"]
    assert [data["partial_image_index"] for data in previews] == [0, 1]
    assert opened(previews[0]["b64_json"]).size == (128, 96)
    assert names[-1] == "image_upscale.completed"
    completed = events[-1][1]
    assert (pixels_of(completed["b64_json"]) == doubled(png())).all()
    assert completed["num_tiles"] == tiles[0]["num_tiles"]


BAD = {
    "scale": ["2.5", "0.5", "nan"],
    "tile": ["8", "512"],
    "overlap": ["-1", "some"],
    "exact": ["1"],
    "output_format": ["gif"],
    "output_compression": ["50"],
    "partial_images": ["2"],
    "fidelity": ["1.5"],
    "face_guard": ["-1"],
    "heat_map": ["red"],
    "prompt": ["sharper"],
    "denoise": ["0.5"],
    "n": ["2"],
    "priority": ["1"],
}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        *[({name: value}, name) for name, values in BAD.items() for value in values],
        ({"tile": "32", "overlap": "17"}, "overlap"),
        ({"tile": "64", "exact": "true"}, "tile"),
        ({"overlap": "8", "exact": "true"}, "overlap"),
    ],
)
async def test_bad_fields(server: UpscalingServer, fields: dict[str, str], param: str) -> None:
    assert (await server.refused(**fields))["param"] == param


async def test_exact_tiles_on_demand() -> None:
    server = UpscalingServer(upscaler_info(exact_by_default=False))
    answer = (await server.send()).json()
    assert answer["exact"] is False
    answer = (await server.send(exact="true")).json()
    assert (answer["exact"], answer["overlap"], answer["tile"]) == (True, 8, 72)
    server = UpscalingServer()
    assert (await server.send()).json()["exact"] is True
    assert (await server.send(exact="false")).json()["exact"] is False


async def test_exact_tiles_that_cannot_be() -> None:
    server = UpscalingServer(upscaler_info(receptive_radius=None, exact_by_default=False))
    assert (await server.refused(exact="true"))["code"] == "unsupported_feature"
    server = UpscalingServer(upscaler_info(receptive_radius=349, exact_by_default=False))
    error = await server.refused(exact="true")
    assert error["param"] == "exact" and "872" in error["message"]


@pytest.mark.parametrize("image", [b"", b"hello", png()[:60], b"GIF89a"])
async def test_bad_files(server: UpscalingServer, image: bytes) -> None:
    assert (await server.refused(image))["param"] == "image"


async def test_what_is_no_file(server: UpscalingServer) -> None:
    for body in ({}, {"image": None}, {"image": "https://example.org/a.png"}, {"image": 3}):
        error_of(await server.post(UPSCALE_PATH, **body))
    error_of(await server.client.post(UPSCALE_PATH, data={"scale": "2"}), 415)
    two = [("image", ("a.png", png(), "image/png"))] * 2
    error_of(await server.client.post(UPSCALE_PATH, files=two))
    assert not server.engine.requests


async def test_sizes_are_bounded_before_anything_is_decoded() -> None:
    server = UpscalingServer(max_image_input_pixels=10_000, max_upscaled_pixels=20_000)
    # Both are cut off behind their headers: to decode them would be another error.
    error = await server.refused(png(200, 200)[:70])
    assert error["param"] == "image" and "200x200" in error["message"]
    error = await server.refused(png(90, 90)[:70])
    assert error["param"] == "scale" and "180x180" in error["message"]
    assert (await server.send(png(90, 90), scale="1.5")).status_code == 200


async def test_formats_that_cannot_hold_the_result(server: UpscalingServer) -> None:
    file = saved(Image.new("RGB", (9000, 2)))
    assert (await server.refused(file, output_format="webp"))["param"] == "output_format"


async def test_metrics(server: UpscalingServer) -> None:
    num_tiles = (await server.send()).json()["num_tiles"]
    assert server.value("images_total", outcome="completed") == 1
    assert server.value("tiles_total") == num_tiles
    megapixels = server.value("output_megapixels_total")
    assert megapixels == pytest.approx(128 * 96 / 1e6)
    await server.refused(tile="512")
    await server.refused(png(90, 90)[:70])
    assert server.value("images_total", outcome="cancelled") == 0
    server.engine.fault = ValueError("a fault")
    assert (await server.send()).status_code == 500
    assert server.value("images_total", outcome="failed") == 1


async def test_the_default_model_is_loaded_when_it_is_first_asked_for() -> None:
    server = UpscalingServer()
    server.engine.forget("enlarger")
    answers: list[httpx.Response] = await asyncio.gather(server.send(), server.send())
    assert [answer.json()["model"] for answer in answers] == 2 * ["realesrgan-x4plus"]
    assert list(server.engine.specs) == ["realesrgan-x4plus"]
    answer = (await server.send(model="realesr-animevideov3")).json()
    assert answer["model"] == "realesr-animevideov3"
    # What is meant without a name does not depend on what others have asked for.
    assert (await server.send()).json()["model"] == "realesrgan-x4plus"
    error_of(await server.send(model="other"), 404)


@pytest.mark.parametrize("name", ["enlarger", "realesr-animevideov3"])
async def test_what_the_operator_serves_is_the_default(name: str) -> None:
    server = UpscalingServer(upscaler_info(name))
    assert (await server.send()).json()["model"] == name
    assert not server.engine.specs
    # So it stays when somebody has had another one loaded.
    answer = (await server.send(model="realesrgan-x4plus")).json()
    assert answer["model"] == "realesrgan-x4plus"
    assert (await server.send()).json()["model"] == name


async def test_of_several_models_one_must_be_named() -> None:
    server = UpscalingServer(upscaler_info("a"), upscaler_info("b"))
    assert "a, b" in (await server.refused())["message"]


async def test_the_card(server: UpscalingServer) -> None:
    [card] = (await server.client.get("/v1/models")).json()["data"]
    assert (card["id"], card["scale"], card["exact_overlap"]) == ("enlarger", 2, 8)
