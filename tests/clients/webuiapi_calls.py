# /// script
# dependencies = ["webuiapi", "pytest"]
# ///
"""A1111's client for Python: https://github.com/mix1009/sdwebuiapi"""

import os
from urllib.parse import urlsplit

import pytest
import webuiapi
from PIL import Image, ImageChops

SERVER = urlsplit(os.environ["SERVER_URL"])
MODEL = "tandem-shapes"
SIZE = {"width": 64, "height": 64}
"""The size to ask for: the default model draws at most 256x256, but the client's default is
512x512."""


@pytest.fixture
def api():
    return webuiapi.WebUIApi(host=SERVER.hostname, port=SERVER.port)


@pytest.fixture
def drawn(api):
    return api.txt2img(prompt="a red circle", negative_prompt="blue", seed=1003, **SIZE)


def test_txt2img(api, drawn):
    assert drawn.image.size == (64, 64)
    assert (drawn.info["seed"], drawn.info["sampler_name"]) == (1003, "Euler a")
    assert drawn.parameters["prompt"] == "a red circle"
    again = api.txt2img(prompt="a red circle", negative_prompt="blue", seed=1003, **SIZE)
    assert again.image.tobytes() == drawn.image.tobytes()


def test_img2img(api, drawn):
    redrawn = api.img2img(images=[drawn.image], prompt="a green circle", cfg_scale=6.5, **SIZE)
    assert redrawn.image.size == (64, 64)


@pytest.mark.parametrize("invert", [0, 1])
def test_inpainting(api, drawn, invert):
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    painted = api.img2img(
        images=[drawn.image],
        mask_image=mask,
        inpainting_mask_invert=invert,
        prompt="a blue square",
        **SIZE,
    )
    kept = (0, 0, 32, 64) if invert else (32, 0, 64, 64)
    difference = ImageChops.difference(painted.image.convert("RGB"), drawn.image.convert("RGB"))
    assert difference.crop(kept).getbbox() is None
    assert difference.getbbox() is not None


def test_what_there_is(api):
    [title] = api.util_get_model_names()
    assert title.split(" [")[0] == MODEL
    assert api.util_get_current_model() == title
    api.util_set_model(MODEL)  # the client looks for the title that is closest
    assert "Euler a" in {sampler["name"] for sampler in api.get_samplers()}
    assert "Karras" in {one["label"] for one in api.get_schedulers()}
    assert "realesrgan-x4plus" in {one["name"] for one in api.get_upscalers()}
    assert (api.get_loras(), api.get_sd_vae(), api.get_cmd_flags()) == ([], [], {})
    assert api.get_progress()["progress"] == 0
    assert api.interrupt() == {}


def test_a_second_pass(api, drawn):
    larger = api.txt2img(prompt="a red circle", seed=1003, enable_hr=True, **SIZE)
    assert larger.image.size == (128, 128)
    assert "Hires upscaler: Latent" in larger.info["infotexts"][0]


def test_a_refusal_says_why(api):
    with pytest.raises(RuntimeError, match="tiling is not supported"):
        api.txt2img(prompt="a red circle", tiling=True, **SIZE)
