"""Background removal in a real server: the default model is loaded by its first request."""

import base64
import concurrent.futures
import io
import json
import time
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

pytestmark = pytest.mark.e2e
DATA = Path(__file__).parents[1] / "data"
LEMUR = (DATA / "lemur.png").read_bytes()


def matte(server, **files):
    return httpx.post(f"{server.url}/v1/images/matte", files=files, timeout=300)


def rgba(b64: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))))


def test_the_first_request_loads_the_model(server):
    assert "u2netp" not in httpx.get(f"{server.url}/v1/models", timeout=60).text
    body = matte(server, image=LEMUR).json()
    assert (body["model"], body["source"]) == ("u2netp", "network")
    expected = np.asarray(Image.open(DATA / "lemur_alpha.png").convert("L")) / 255
    alpha = rgba(body["data"][0]["b64_json"])[..., 3] / 255
    assert np.abs(alpha - expected).mean() < 0.05
    assert "u2netp" in httpx.get(f"{server.url}/v1/models", timeout=60).text


def test_a_drawn_image_with_a_transparent_background(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.images.generate(
            model="tandem-shapes",
            prompt="a large red circle on a white background",
            background="transparent",
            size="64x64",
            extra_body={"seed": 3, "num_inference_steps": 8},
        )
    assert answer.background == "transparent"
    assert rgba(answer.data[0].b64_json).shape == (64, 64, 4)


def test_others_are_answered_while_a_large_picture_is_solved(server):
    """A client that leaves ends its own picture."""
    rows, columns = np.mgrid[:500, :500]
    distance = np.hypot(rows - 250, columns - 250)
    levels = np.select([distance < 110, distance > 220], [255, 0], 128).astype(np.uint8)
    noise = np.random.default_rng(1).integers(0, 255, (500, 500, 3), dtype=np.uint8)
    files = {}
    for name, array in (("image", noise), ("trimap", levels)):
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG", compress_level=1)
        files[name] = file.getvalue()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        large = pool.submit(matte, server, **files)
        small = matte(server, image=LEMUR)
        assert small.status_code == 200
        for _ in range(20):
            assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200
            time.sleep(0.02)
        assert large.result().status_code == 200
    server.abandon(
        "/v1/images/matte", lambda: server.metric("tandem_matting_num_running"), files=files
    )
    server.wait_idle(("matting_num_running", "matting_num_waiting"))
    assert server.metric("tandem_matting_images_total", outcome="cancelled") == 1


def test_an_image_is_drawn_enlarged_and_cut_out_in_one_request(server):
    """Its file repeats all of it, with the weights of each stage named."""
    url = f"{server.url}/v1/images/generations"
    body = {
        "model": "tandem-shapes",
        "prompt": "a large red circle on a white background",
        "size": "64x64",
        "seed": 3,
        "num_inference_steps": 8,
        "then": [
            {"operation": "enlarge", "model": "realesr-animevideov3", "scale": 2},
            {"operation": "matte"},
        ],
    }
    answer = httpx.post(url, json=body, timeout=300).json()
    assert (answer["background"], answer["size"]) == ("transparent", "128x128")
    first = answer["data"][0]["b64_json"]
    told = json.loads(Image.open(io.BytesIO(base64.b64decode(first))).text["tandem"])
    assert [len(stage["made_with"]["model"]) for stage in told["then"]] == [16, 16]
    with httpx.stream("POST", url, json={**told, "stream": True}, timeout=300) as response:
        lines = [line for line in response.iter_lines() if line.startswith("data: {")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert {event["stage"] for event in events[:-1]} == {0, 1, 2}
    assert (rgba(events[-1]["b64_json"]) == rgba(first)).all()
