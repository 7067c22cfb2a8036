"""Adapters of the built-in image model, through a real server and the official client."""

import base64
import contextlib
import io
import threading

import httpx
import numpy as np
import openai
import pytest
from diffusers import UNet2DConditionModel
from PIL import Image

from engine.weights.source import _SHIPPED
from tests.helpers.adapters.image_adapters import kohya, write

pytestmark = pytest.mark.e2e
MODEL = "tandem-shapes"
OPTIONS = {"size": "64x64", "extra_body": {"seed": 3, "num_inference_steps": 4}}
PROMPT = "a large red circle"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files `ink` and `neon`, and a pickle beside them."""
    unet = UNet2DConditionModel.from_pretrained(_SHIPPED[MODEL] / "unet")
    paths = [path for path, _ in unet.named_modules() if path.endswith(("to_q", "to_v", "conv2"))]
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("ink", "neon")):
        made = write(unet, paths, kohya("lora_unet"), seed=seed, size=1.0)
        made.save(folder / f"{name}.safetensors")
    (folder / "bad.safetensors").write_bytes(b"\x80\x04K\x01.")
    return folder


@pytest.fixture(scope="module")
def server(start_shared_server, folder):
    return start_shared_server(
        *(MODEL, f"--lora=ink={folder / 'ink.safetensors'}"),
        *("--enable-runtime-loading", f"--loras-dir={folder}", "--deterministic"),
    )


def pictures(client, loras=None, model=MODEL, **options):
    body = OPTIONS["extra_body"] | ({} if loras is None else {"loras": loras}) | options
    answer = client.images.generate(model=model, prompt=PROMPT, size="64x64", extra_body=body)
    files = [base64.b64decode(image.b64_json) for image in answer.data]
    return [np.asarray(Image.open(io.BytesIO(file))).astype(int) for file in files]


def change(server, what, **body):
    return httpx.post(f"{server.url}/v1/{what}_lora_adapter", json=body, timeout=60)


def test_they_are_chosen_swept_loaded_and_unloaded(server, client):
    [base] = pictures(client)
    zero, half, full = pictures(client, [{"name": "ink", "scale": [0, 0.5, 1]}])
    assert np.array_equal(zero, base)
    assert not np.array_equal(half, base) and not np.array_equal(half, full)
    assert np.array_equal(pictures(client, model="ink")[0], full)
    cards = {card.id: card.model_dump() for card in client.models.list()}
    assert {name: card["parent"] for name, card in cards.items()} == {MODEL: None, "ink": MODEL}

    loaded = change(server, "load", lora_name="neon", model=MODEL)
    assert loaded.status_code == 200, loaded.text
    assert loaded.json()["ranks"] == [3, 5]
    refused = change(server, "load", lora_name="bad", model=MODEL)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "corrupt_file")
    [both] = pictures(client, [{"name": "ink", "scale": 0.5}, {"name": "neon"}])
    assert not np.array_equal(both, half)

    found = []

    def draw():
        with contextlib.suppress(openai.NotFoundError):  # the unload may come first
            found.extend(pictures(client, [{"name": "neon"}], num_inference_steps=20))

    wanted = pictures(client, [{"name": "neon"}], num_inference_steps=20)
    drawing = threading.Thread(target=draw)
    drawing.start()
    unloaded = change(server, "unload", lora_name="neon")
    assert unloaded.status_code == 200, unloaded.text
    drawing.join()
    with pytest.raises(openai.NotFoundError, match="no adapter 'neon'"):
        pictures(client, [{"name": "neon"}])
    assert all(np.array_equal(one, wanted[0]) for one in found)
    assert np.array_equal(pictures(client)[0], base)


def test_a1111s_tags(server, client):
    body = {"prompt": f"{PROMPT} <lora:ink:0.5>", "seed": 3, "steps": 4, "width": 64, "height": 64}
    answer = httpx.post(f"{server.url}/sdapi/v1/txt2img", json=body, timeout=60).json()
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))))
    [wanted] = pictures(client, [{"name": "ink", "scale": 0.5}])
    assert np.array_equal(image.astype(int), wanted)
