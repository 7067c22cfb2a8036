"""A second pass, as our own route takes it."""

import json
from dataclasses import replace
from typing import Any

import pytest

from engine.contract.draw import Enlarging, ImageTask
from tests.helpers.server.fake_images import image_info
from tests.helpers.server.fake_server import error_of
from tests.helpers.server.image_server import ImageServer, data_url, opened, png

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"


async def test_the_answer_and_the_file_say_how_it_was_made(server: ImageServer) -> None:
    response = await server.post(
        GENERATIONS, prompt="a", size="48x32", negative_prompt="b", hires={"scale": 1.9}
    )
    answer = response.json()
    hires = server.last.params.hires
    assert hires is not None and server.last.params.width == 48
    assert (hires.width, hires.height, hires.enlarging) == (88, 56, Enlarging.LATENT)
    assert (hires.prompt, hires.negative_prompt, hires.strength) == ("a", "b", 0.7)
    assert (answer["size"], answer["hires"]["first_size"]) == ("88x56", "48x32")
    image = opened(answer["data"][0]["b64_json"])
    assert image.size == (88, 56)
    first = server.last
    again = await server.client.post(GENERATIONS, json=json.loads(image.text["tandem"]))
    assert again.status_code == 200, again.text
    hires = replace(hires, scheduler="ddim")
    assert server.last.params == replace(first.params, scheduler="ddim", hires=hires)
    assert again.json()["data"][0]["b64_json"] == answer["data"][0]["b64_json"]
    plain = (await server.post(GENERATIONS, prompt="a")).json()
    assert plain["hires"] is None


async def test_progress_counts_both_passes(server: ImageServer) -> None:
    hires = {"strength": 0.5, "num_inference_steps": 7}
    response = await server.post(GENERATIONS, prompt="a", hires=hires, n=2, num_inference_steps=5)
    job = (await server.client.get(f"/v1/images/{response.headers['X-Image-Id']}")).json()
    assert (job["step"], job["num_steps"]) == (16, 16)


@pytest.mark.parametrize(
    ("hires", "param", "said"),
    [
        ({"scale": 0.5}, "hires.scale", "greater than or equal to 1"),
        ({"scale": 3}, "hires.scale", "whose limit is 16384"),
        ({"size": "100x100"}, "hires.size", "must be multiples"),
        ({"size": "x"}, "hires.size", "must be WIDTHxHEIGHT"),
        ({"size": "0x0"}, "hires.size", "too small"),
        ({"size": "64x64", "scale": 1}, "hires", "leave one of them out"),
        ({"strength": 0}, "hires.strength", "greater than 0"),
        ({"strength": 0.1}, "hires.strength", "strength 0.1 with 4 steps runs none"),
        ({"num_inference_steps": 0}, "hires.num_inference_steps", "greater than"),
        ({"upscaler": "esrgan"}, "hires.upscaler", "'latent'"),
        ({"scheduler": "odd"}, "hires.scheduler", "use one of ddim"),
        ({"strenth": 0.5}, "hires", "no field 'strenth'"),
        ({"prompt": ""}, "hires.prompt", "at least 1"),
        ([], "hires", "object"),
        (2, "hires", "object"),
    ],
)
async def test_refusals(server: ImageServer, hires: Any, param: str, said: str) -> None:
    error = error_of(await server.post(GENERATIONS, prompt="a", hires=hires))
    assert (error["param"], said in error["message"]) == (param, True), error
    assert server.engine.requests == []


async def test_where_there_is_no_second_pass() -> None:
    tasks = (ImageTask.TEXT_TO_IMAGE,)
    server = ImageServer(image_info(tasks=tasks))
    refused = await server.post(GENERATIONS, prompt="a", hires={})
    assert "does not support image_to_image, which" in refused.json()["error"]["message"]
    body = {"prompt": "a", "images": [data_url(png())], "hires": {"scale": 2}}
    error = error_of(await ImageServer().client.post(EDITS, json=body))
    assert "from a prompt alone" in error["message"]
