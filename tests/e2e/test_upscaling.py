"""A network that enlarges images in a real server: its own worker, results whole and streamed."""

import base64
import io
import json

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.upscaling.upscaling_nets import compact_net, untiled

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(5)
    return compact_net()


@pytest.fixture(scope="module")
def server(start_shared_server, net, tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "net.pth"
    torch.save({"params": net.state_dict()}, path)
    return start_shared_server("--model", f"net={path}", "--image-dtype", "float32")


@pytest.fixture(scope="module")
def picture():
    y, x = np.mgrid[0:70, 0:90]
    return np.stack([2 * x, 3 * y, (x * y) % 256], 2).astype(np.uint8)


def png(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def opened(encoded):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded)))).astype(int)


def test_an_image_whole_and_streamed(server, net, picture):
    url = f"{server.url}/v1/images/upscale"
    body = {"files": {"image": png(picture)}, "data": {"tile": "40"}}
    answer = httpx.post(url, **body, timeout=60).json()
    assert (answer["model"], answer["exact"], answer["num_tiles"] > 1) == ("net", True, True)
    found = opened(answer["data"][0]["b64_json"])
    assert np.abs(found - untiled(picture, net)).max() <= 1
    body["data"]["stream"] = "true"
    lines = [line for line in httpx.post(url, **body, timeout=60).text.split("\n") if "{" in line]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert [event["tile"] for event in events[:-1]] == list(range(1, answer["num_tiles"] + 1))
    assert (opened(events[-1]["b64_json"]) == found).all()


def test_it_is_listed_and_measured(server):
    [card] = httpx.get(f"{server.url}/v1/models", timeout=60).json()["data"]
    assert (card["id"], card["scale"], card["exact_overlap"]) == ("net", 2, 8)
    metrics = httpx.get(f"{server.url}/metrics", timeout=60).text
    assert 'tandem_upscale_tiles_total{model_name="net"}' in metrics
