"""A1111's routes over the engine that paints."""

import asyncio
import base64
import io
import json
import random
from dataclasses import replace
from typing import Any

import httpx
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from engine.contract.draw import (
    Enlarging,
    HiresPass,
    ImageTask,
    MaskContent,
    PromptSyntax,
    num_steps_at,
)
from server.dialects.a1111.hires import hires_body
from server.dialects.a1111.protocol import Txt2ImgRequest
from tests.helpers.server.fake_engine import Failure
from tests.helpers.server.fake_images import DENOISING, image_info
from tests.helpers.server.fake_server import answer_of, until
from tests.helpers.server.fake_texts import model_info
from tests.helpers.server.image_server import ImageServer, data_url, opened, png, saved
from tests.helpers.server.upscaling_server import UpscalingServer

TXT2IMG, IMG2IMG = "/sdapi/v1/txt2img", "/sdapi/v1/img2img"
EXTRA = "/sdapi/v1/extra-single-image"
PNG_INFO = "/sdapi/v1/png-info"


@pytest.fixture
async def server() -> ImageServer:
    return ImageServer()


async def answered(server: ImageServer, path: str, **body: Any) -> dict[str, Any]:
    answer: dict[str, Any] = answer_of(await server.post(path, **body))
    assert answer.keys() == {"images", "parameters", "info"}
    return answer | {"info": json.loads(answer["info"])}


def refusal_of(response: httpx.Response, status: int = 400) -> str:
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"error", "detail", "body", "errors"}
    detail: str = body["detail"]
    return detail


def encoded(image: bytes) -> str:
    return base64.b64encode(image).decode()


def white_left(width: int = 64, height: int = 48) -> bytes:
    """A mask in A1111's notation: its left half is white."""
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (0, 0, width // 2, height))
    return saved(mask)


async def test_what_is_left_out_is_the_models(server: ImageServer) -> None:
    answer = await answered(server, TXT2IMG, prompt="a (red:1.2) circle")
    request = server.last
    assert (request.prompt, request.params.task) == (
        "a (red:1.2) circle",
        ImageTask.TEXT_TO_IMAGE,
    )
    assert request.params.prompt_syntax is PromptSyntax.A1111
    assert (request.params.width, request.params.num_inference_steps) == (64, 4)
    assert (request.params.guidance_scale, request.params.scheduler) == (4.0, None)
    [image] = answer["images"]
    assert opened(image).size == (64, 64)
    info = answer["info"]
    assert (info["width"], info["height"], info["steps"], info["cfg_scale"]) == (64, 64, 4, 4.0)
    assert info["sampler_name"] == "DDIM"
    assert info["all_seeds"] == [info["seed"]] == [request.params.seed]
    assert "Steps: 4, Sampler: DDIM, CFG scale: 4.0" in info["infotexts"][0]
    assert answer["parameters"]["prompt"] == "a (red:1.2) circle"


async def test_every_field_reaches_the_engine(server: ImageServer) -> None:
    body = {
        "prompt": "a",
        "negative_prompt": "b",
        "seed": 7,
        "batch_size": 2,
        "n_iter": 2,
        "steps": 3,
        "cfg_scale": 5,
        "width": 96,
        "height": 32,
        "sampler_name": "DPM++ 2M",
        "override_settings": {"CLIP_stop_at_last_layers": 2, "sd_model_checkpoint": "painter"},
    }
    answer = await answered(server, TXT2IMG, **body)
    params = server.last.params
    assert (params.negative_prompt, params.seed, params.n) == ("b", 7, 4)
    assert (params.num_inference_steps, params.guidance_scale, params.clip_skip) == (3, 5, 1)
    assert (params.width, params.height, params.scheduler) == (96, 32, "dpmpp_2m")
    assert answer["info"]["all_seeds"] == [7, 8, 9, 10]
    assert len(answer["images"]) == 4
    assert (await answered(server, TXT2IMG, prompt="a", send_images=False))["images"] == []
    await answered(server, TXT2IMG, prompt="a", width=96, seed=-1)
    assert (server.last.params.width, server.last.params.height) == (96, 64)


async def test_what_the_swagger_page_sends_asks_for_nothing(server: ImageServer) -> None:
    neutral = {
        "styles": [],
        "subseed": -1,
        "subseed_strength": 0,
        "seed_resize_from_h": -1,
        "restore_faces": False,
        "tiling": False,
        "do_not_save_samples": False,
        "eta": None,
        "s_churn": 0,
        "s_noise": 1,
        "override_settings": {},
        "override_settings_restore_afterwards": True,
        "enable_hr": False,
        "hr_scale": 2,
        "script_name": "",
        "script_args": [],
        "alwayson_scripts": {},
        "save_images": False,
        "infotext": None,
        "denoising_strength": 0,
    }
    response = await server.client.post(TXT2IMG, json={"prompt": "a", **neutral})
    assert response.status_code == 200, response.text
    assert "X-Ignored-Fields" not in response.headers
    response = await server.post(TXT2IMG, prompt="a", odd=1)
    assert response.headers["X-Ignored-Fields"] == "odd"


async def test_what_webuiapi_sends_when_it_is_told_nothing() -> None:
    names = ("ddim", "euler_ancestral", "euler")
    server = ImageServer(image_info(denoising=replace(DENOISING, schedulers=names)))
    body = {
        "enable_hr": False,
        "hr_scale": 2,
        "hr_upscaler": "Latent",
        "hr_second_pass_steps": 0,
        "hr_resize_x": 0,
        "denoising_strength": 0.7,
        "firstphase_width": 0,
        "styles": [],
        "subseed": -1,
        "subseed_strength": 0.0,
        "seed_resize_from_h": 0,
        "eta": 1.0,
        "s_churn": 0,
        "s_tmax": 0,
        "s_noise": 1,
        "override_settings": {},
        "sampler_name": "Euler a",
        "sampler_index": "Euler a",
        "script_name": None,
        "script_args": [],
        "alwayson_scripts": {},
    }
    answer = await answered(server, TXT2IMG, prompt="a", **body)
    assert server.last.params.scheduler == "euler_ancestral"
    assert answer["info"]["warnings"] == []
    assert answer["info"]["denoising_strength"] is None
    assert "strength" not in answer["info"]["infotexts"][0], "a value that had no effect"
    with_image = {
        "resize_mode": 0,
        "mask_blur": 4,
        "inpainting_fill": 0,
        "inpaint_full_res": True,
        "inpaint_full_res_padding": 0,
        "inpainting_mask_invert": 0,
        "initial_noise_multiplier": 1,
        "image_cfg_scale": 1.5,
        "include_init_images": False,
    }
    body |= with_image | {"init_images": [data_url(png())]}
    await answered(server, IMG2IMG, prompt="a", **body)
    assert server.last.params.task is ImageTask.IMAGE_TO_IMAGE


async def test_an_eta_that_cannot_act_is_told_of() -> None:
    names = ("ddim", "euler_ancestral", "euler", "dpmpp_2m_sde_karras")
    server = ImageServer(image_info(denoising=replace(DENOISING, schedulers=names)))
    for sampler, eta, said in (
        (None, 1, ["eta has no effect: DDIM always uses 0 here"]),
        ("DDIM", 0, []),
        ("Euler a", 0, ["eta has no effect: Euler a always uses 1 here"]),
        ("DPM++ 2M SDE Karras", 1, []),
        ("Euler", 0.5, []),
    ):
        answer = await answered(server, TXT2IMG, prompt="a", eta=eta, sampler_name=sampler)
        assert answer["info"]["warnings"] == said


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"sampler_name": "Euler a"}, "euler_ancestral"),
        ({"sampler_index": "euler"}, "euler"),
        ({"sampler_name": "DPM++ 2M Karras"}, "dpmpp_2m_karras"),
        ({"sampler_name": "DPM++ 2M", "scheduler": "karras"}, "dpmpp_2m_karras"),
        ({"sampler_name": "DPM++ 2M Karras", "scheduler": "Karras"}, "dpmpp_2m_karras"),
        ({"sampler_name": "DPM++ 2M", "scheduler": "Automatic"}, "dpmpp_2m"),
        ({"sampler_name": "dpmpp_2m_karras"}, "dpmpp_2m_karras"),
        ({"scheduler": "karras"}, "dpmpp_2m_karras"),
        ({"scheduler": "automatic"}, None),
        ({}, None),
    ],
)
async def test_samplers(asked: dict[str, str], expected: str | None) -> None:
    names = ("dpmpp_2m", "dpmpp_2m_karras", "euler", "euler_ancestral")
    server = ImageServer(image_info(denoising=replace(DENOISING, schedulers=names)))
    await answered(server, TXT2IMG, prompt="a", **asked)
    assert server.last.params.scheduler == expected
    listed = (await server.client.get("/sdapi/v1/samplers")).json()
    assert [one["name"] for one in listed] == ["DPM++ 2M", "DPM++ 2M Karras", "Euler", "Euler a"]
    assert [one["aliases"] for one in listed] == [[name] for name in names]


async def test_an_image_is_redrawn(server: ImageServer) -> None:
    answer = await answered(server, IMG2IMG, init_images=[encoded(png())], prompt="a", steps=8)
    params = server.last.params
    assert (params.task, params.strength) == (ImageTask.IMAGE_TO_IMAGE, 0.75)
    assert answer["info"]["denoising_strength"] == 0.75
    assert "Denoising strength: 0.75" in answer["info"]["infotexts"][0]
    assert (params.width, params.height) == (64, 48)
    assert server.last.images[0].width == 64
    assert answer["parameters"].keys().isdisjoint({"init_images", "mask"})
    body = {"init_images": [data_url(png())] * 2, "denoising_strength": 0.5, "batch_size": 2}
    answer = await answered(server, IMG2IMG, **body, n_iter=2, width=80, height=64)
    assert len(answer["images"]) == 4
    assert (server.last.params.strength, server.last.params.width) == (0.5, 80)


async def test_a_part_is_redrawn(server: ImageServer) -> None:
    body = {"init_images": [encoded(png())], "mask": encoded(white_left()), "prompt": "a"}
    await answered(server, IMG2IMG, **body, steps=8, inpainting_fill=1, resize_mode=0)
    params = server.last.params
    assert (params.task, params.strength, params.crop_to_mask) == (ImageTask.INPAINT, 0.75, True)
    mask = server.last.mask
    assert mask is not None
    assert (mask.data[0], mask.data[63]) == (255, 0)
    more = {"mask_blur": 9, "inpaint_full_res": 0, "inpaint_full_res_padding": 7}
    await answered(server, IMG2IMG, **body, **more)
    params = server.last.params
    assert (params.feather, params.crop_to_mask, params.crop_padding) == (9, False, 7)


async def test_masks_may_be_black_and_what_is_under_them_filled(server: ImageServer) -> None:
    body = {"init_images": [encoded(png())], "mask": encoded(white_left()), "prompt": "a"}
    await answered(server, IMG2IMG, **body, inpainting_mask_invert=1, inpainting_fill=0)
    mask = server.last.mask
    assert mask is not None
    assert (mask.data[0], mask.data[63]) == (0, 255)
    assert server.last.params.mask_content is MaskContent.FILL
    await answered(server, IMG2IMG, **body, inpainting_mask_invert=False, inpainting_fill=1)
    assert server.last.params.mask_content is MaskContent.ORIGINAL


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (TXT2IMG, {"prompt": "a", "styles": ["x"]}, "styles are not supported"),
        (IMG2IMG, {"init_images": ["AAAA"], "enable_hr": True}, "enable_hr is only for txt2img"),
        (TXT2IMG, {"prompt": "a", "tiling": True}, "tiling is not supported"),
        (TXT2IMG, {"prompt": "a", "alwayson_scripts": {"x": {}}}, "alwayson_scripts is not"),
        (TXT2IMG, {"prompt": "a", "steps": 0}, "steps: must be"),
        (TXT2IMG, {"prompt": "a", "steps": "x"}, "steps: must be"),
        (TXT2IMG, {"prompt": "a", "cfg_scale": 1000}, "cfg_scale: must be"),
        (TXT2IMG, {"prompt": "a", "batch_size": 4, "n_iter": 4}, "batch_size times n_iter is 16"),
        (TXT2IMG, {"prompt": "a", "seed": -2}, "seed: must be"),
        (TXT2IMG, {"prompt": "a", "width": 1001}, "size 1001x64"),
        (TXT2IMG, {"prompt": "a", "sampler_name": "Restart"}, "use one of DDIM, Euler, DPM++ 2M"),
        (TXT2IMG, {"prompt": "a", "scheduler": "karras"}, "use one of DDIM"),
        (
            TXT2IMG,
            {"prompt": "a", "override_settings": {"x": 1}},
            "override_settings can contain only",
        ),
        (
            TXT2IMG,
            {"prompt": "a", "override_settings": {"CLIP_stop_at_last_layers": 0}},
            "from 1 to 12",
        ),
        (TXT2IMG, {"prompt": "x" * 4001}, "prompt: must"),
        (TXT2IMG, {}, "the prompt is empty"),
        (IMG2IMG, {"prompt": "a"}, "init_images: this field is required"),
        (IMG2IMG, {"init_images": []}, "init_images: must have at least 1"),
        (IMG2IMG, {"init_images": ["!"]}, "base64"),
        (IMG2IMG, {"init_images": ["http://x/a.png"]}, "does not fetch links"),
        (IMG2IMG, {"init_images": ["AAAA"], "resize_mode": 1}, "resize_mode is not supported"),
        (
            IMG2IMG,
            {"init_images": ["AAAA"], "mask": "AAAA", "inpainting_fill": 2},
            "inpainting_fill 2 is not supported",
        ),
        (TXT2IMG, {"prompt": "a", "eta": 0.5}, "eta of DDIM is always 0 here"),
        (TXT2IMG, {"prompt": "a", "eta": 2}, "eta: must be"),
        (IMG2IMG, {"init_images": ["AAAA"], "denoising_strength": 0}, "denoising_strength: must"),
        (IMG2IMG, {"init_images": ["AAAA"] * 2, "batch_size": 3}, "batch_size is 3 with 2"),
    ],
)
async def test_refusals(server: ImageServer, path: str, body: dict[str, Any], said: str) -> None:
    assert said in refusal_of(await server.post(path, **body))
    assert server.engine.requests == []


async def test_models_and_settings() -> None:
    server = ImageServer(image_info("painter"), image_info("other"), model_info("writer"))
    models = (await server.client.get("/sdapi/v1/sd-models")).json()
    assert [model["title"] for model in models] == ["painter", "other"]
    options = (await server.client.get("/sdapi/v1/options")).json()
    assert options["sd_model_checkpoint"] == "painter"
    assert (await server.post("/sdapi/v1/options", **options)).status_code == 200
    for change in ({"sd_model_checkpoint": "other"}, {"samples_format": "webp"}, {"odd": 1}):
        refused = await server.post("/sdapi/v1/options", **change)
        assert "send override_settings" in refusal_of(refused)
    refused = await server.post(TXT2IMG, prompt="a")
    assert "model is required" in refusal_of(refused)
    body = {"prompt": "a", "override_settings": {"sd_model_checkpoint": "other"}}
    assert (await answered(server, TXT2IMG, **body))["info"]["sd_model_name"] == "other"
    body["override_settings"] = {"sd_model_checkpoint": "nobody"}
    assert "'nobody'" in refusal_of(await server.post(TXT2IMG, **body), 404)
    body["override_settings"] = {"sd_model_checkpoint": "writer"}
    assert "writer writes text" in refusal_of(await server.post(TXT2IMG, **body))


async def test_progress_and_a_full_queue() -> None:
    server = ImageServer(engine={"max_num_images": 1}, max_queued_images=1)
    idle = (await server.client.get("/sdapi/v1/progress")).json()
    assert (idle["progress"], idle["state"]["job_count"]) == (0, 0)
    server.engine.hold()
    held = asyncio.create_task(server.post(TXT2IMG, prompt="a", batch_size=2))
    await until(lambda: len(server.engine.requests) == 1)
    state = (await server.client.get("/sdapi/v1/progress?skip_current_image=true")).json()["state"]
    assert (state["job_count"], state["sampling_steps"], state["job"]) == (2, 8, "queued")
    refused = await server.post(TXT2IMG, prompt="a")
    assert "images are running or waiting" in refusal_of(refused, 429)
    server.engine.release()
    assert (await held).status_code == 200
    assert (await server.client.get("/sdapi/v1/progress")).json()["progress"] == 0


async def test_the_oldest_request_is_interrupted(server: ImageServer) -> None:
    server.engine.hold()
    first, second = (
        asyncio.create_task(server.post(TXT2IMG, prompt=prompt)) for prompt in ("a", "b")
    )
    await until(lambda: len(server.engine.requests) == 2)
    cancelled = server.engine.requests[0]
    assert (await server.client.post("/sdapi/v1/interrupt")).json() == {}
    others = {"a": second, "b": first}
    refusal_of(await {"a": first, "b": second}[cancelled.prompt], 499)
    server.engine.release()
    assert (await others[cancelled.prompt]).status_code == 200
    assert (await server.client.post("/sdapi/v1/interrupt")).json() == {}


async def test_an_image_is_enlarged() -> None:
    server = UpscalingServer()
    body = {"image": data_url(png()), "resize_mode": 0, "upscaler_1": "enlarger", "upscaler_2": ""}
    answer = (await server.post(EXTRA, **body | {"upscaling_resize": 1.5})).json()
    assert answer.keys() == {"html_info", "image"}
    assert opened(answer["image"]).size == (96, 72)
    answer = (await server.post(EXTRA, image=encoded(png()))).json()
    assert opened(answer["image"]).size == (128, 96)
    listed = (await server.client.get("/sdapi/v1/upscalers")).json()
    assert {"name": "enlarger", "scale": 2}.items() <= listed[-1].items()
    for wrong, said in (
        ({"upscaler_1": "None"}, "name one of /sdapi/v1/upscalers"),
        ({"resize_mode": 1}, "resize_mode is not supported"),
        ({"gfpgan_visibility": 1}, "gfpgan_visibility is not supported"),
        ({"upscaling_resize": 17}, "scale: must be"),
        ({"upscaling_resize": 3}, "scale is 3; enlarger enlarges at most 2 times"),
    ):
        assert said in refusal_of(await server.post(EXTRA, **body | wrong))


async def test_menus_are_filled() -> None:
    server = ImageServer(load_on_first_use=False)
    labels = [one["label"] for one in (await server.client.get("/sdapi/v1/schedulers")).json()]
    assert labels == ["Automatic", "Uniform", "Karras", "Exponential"]
    for name, empty in {
        "upscalers": [],
        "embeddings": {"loaded": {}, "skipped": {}},
        "sd-vae": [],
        "script-info": [],
        "scripts": {"txt2img": [], "img2img": []},
    }.items():
        assert (await server.client.get(f"/sdapi/v1/{name}")).json() == empty
    for name in ("checkpoints", "loras", "vae", "embeddings"):
        refreshed = await server.client.post(f"/sdapi/v1/refresh-{name}")
        assert (refreshed.status_code, refreshed.json()) == (200, None)


async def test_a_file_tells_how_it_was_made(server: ImageServer) -> None:
    made: dict[str, Any] = {"prompt": "a red circle,\nSteps: 3, big", "negative_prompt": "blue"}
    answer = await answered(server, TXT2IMG, **made, seed=7, width=96, steps=3)
    for sent in (answer["images"][0], f"data:image/png;base64,{answer['images'][0]}"):
        read = (await server.post(PNG_INFO, image=sent)).json()
        assert read["info"] == answer["info"]["infotexts"][0]
        assert json.loads(read["items"]["tandem"])["seed"] == 7
        assert (
            read["parameters"].items()
            >= {
                "Prompt": made["prompt"],
                "Negative prompt": "blue",
                "Steps": "3",
                "Sampler": "DDIM",
                "Seed": "7",
                "Size-1": "96",
                "Size-2": "64",
            }.items()
        )
    for format in ("jpeg", "webp"):
        drawn = await server.generate(**made, seed=7, output_format=format)
        [image] = drawn.json()["data"]
        read = (await server.post(PNG_INFO, image=image["b64_json"])).json()
        assert read["parameters"]["Prompt"] == made["prompt"], format
        assert read["info"] == read["items"]["exif comment"]
    read = (await server.post(PNG_INFO, image=encoded(png()))).json()
    assert read == {"info": "", "items": {}, "parameters": {}, "warnings": []}
    for image in ("", "nothing", encoded(b"GIF89a"), "http://localhost/a.png", 3):
        refusal_of(await server.post(PNG_INFO, image=image))
    nothing = await server.post(PNG_INFO, image="")
    assert refusal_of(nothing) == "image is empty; send the image as base64"
    chunks = PngInfo()
    chunks.add_text("parameters", "a" * (1 << 19), zip=True)
    chunks.add_text("more", "b" * (1 << 19) + "b", zip=True)
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "PNG", pnginfo=chunks)
    response = await server.post(PNG_INFO, image=encoded(file.getvalue()))
    assert "1048577 characters" in refusal_of(response)


async def test_other_files_than_a_picture_was_drawn_with_bring_warnings() -> None:
    digests = [f"{random.getrandbits(256):064x}" for _ in range(3)]
    info = image_info(adapters=("ink",), adapter_digests={"ink": digests[1]}, digest=digests[0])
    server = ImageServer(info)
    title = f"painter [{digests[0][:10]}]"
    [model] = (await server.client.get("/sdapi/v1/sd-models")).json()
    assert (model["title"], model["hash"], model["sha256"]) == (
        title,
        digests[0][:10],
        digests[0],
    )
    assert (await server.client.get("/sdapi/v1/options")).json()["sd_model_checkpoint"] == title
    body = {"prompt": "a <lora:ink:1>", "override_settings": {"sd_model_checkpoint": title}}
    answer = await answered(server, TXT2IMG, **body)
    assert (answer["info"]["warnings"], answer["info"]["sd_model_hash"]) == ([], digests[0][:10])
    image = {"image": answer["images"][0]}
    assert (await server.post(PNG_INFO, **image)).json()["warnings"] == []

    swapped = ImageServer(replace(info, digest=digests[2], adapter_digests={"ink": digests[2]}))
    read = (await swapped.post(PNG_INFO, **image)).json()
    said = [(warning.split("'")[1], digests[2][:10] in warning) for warning in read["warnings"]]
    assert said == [("painter", True), ("ink", True)]
    [warning] = (await answered(swapped, TXT2IMG, **body))["info"]["warnings"]
    assert "the files of model 'painter' have changed" in warning
    # A stranger's picture may name anything.
    chunks = PngInfo()
    many = ", ".join(f"{'x' * 300}{n}: 0123456789" for n in range(40))
    chunks.add_text("parameters", f'a\nSteps: 1, Seed: 1, Model: painter, Lora hashes: "{many}"')
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "PNG", pnginfo=chunks)
    response = await server.post(PNG_INFO, image=encoded(file.getvalue()))
    assert (response.status_code, response.json()["warnings"]) == (200, [])


async def test_saving_on_the_server_has_no_effect_and_is_said_so(server: ImageServer) -> None:
    [warning] = (await answered(server, TXT2IMG, prompt="a", save_images=True))["info"]["warnings"]
    assert warning.startswith("save_images has no effect")
    assert (await answered(server, TXT2IMG, prompt="a", save_images=False))["info"][
        "warnings"
    ] == []


async def test_failures() -> None:
    server = ImageServer(api_keys=("zebra",))
    refusal_of(await server.post(TXT2IMG, prompt="a"), 401)
    server.client.headers["X-Api-Key"] = "zebra"
    refusal_of(await server.client.get("/sdapi/v1/nowhere"), 404)
    server.engine.failure = Failure()
    refused = await server.post(TXT2IMG, prompt="a")
    assert refusal_of(refused) == server.engine.failure.message


async def test_adapters_in_prompts() -> None:
    server = ImageServer(image_info(adapters=("ink", "neon")))
    prompt = "a (red) circle <lora:ink:0.8> <lora:neon>"
    answer = await answered(server, TXT2IMG, prompt=prompt, seed=4)
    assert server.last.prompt == "a (red) circle"
    assert [[(use.name, use.scale) for use in one] for one in server.last.loras] == [
        [("ink", 0.8), ("neon", 1.0)]
    ]
    assert answer["info"]["prompt"] == prompt
    image = encoded(png())
    await answered(server, IMG2IMG, prompt="<lora:neon:-1>x", init_images=[image])
    assert [[(use.name, use.scale) for use in one] for one in server.last.loras] == [[("neon", -1)]]
    response = await server.post(TXT2IMG, prompt="a fox <lora:nobody:1>")
    assert "no adapter 'nobody'; it has ink, neon" in refusal_of(response, 404)
    listed = (await server.client.get("/sdapi/v1/loras")).json()
    assert [(one["name"], one["metadata"]) for one in listed] == [
        ("ink", {"model": "painter"}),
        ("neon", {"model": "painter"}),
    ]


async def test_adapters_cannot_be_switched_off_silently() -> None:
    server = ImageServer(image_info(adapters=("ink",)))
    assert "disable_extra_networks" in refusal_of(
        await server.post(TXT2IMG, prompt="a fox <lora:ink:1>", disable_extra_networks=True)
    )
    await answered(server, TXT2IMG, prompt="a fox", disable_extra_networks=False)


def hires_of(server: ImageServer) -> HiresPass:
    found = server.last.params.hires
    assert found is not None
    return found


async def test_a_second_pass(server: ImageServer) -> None:
    body = {"prompt": "a", "enable_hr": True, "steps": 8, "width": 48, "height": 32, "seed": 5}
    answer = await answered(server, TXT2IMG, **body)
    params, hires = server.last.params, hires_of(server)
    assert (params.task, params.width, params.height) == (ImageTask.TEXT_TO_IMAGE, 48, 32)
    assert (hires.width, hires.height, hires.enlarging) == (96, 64, Enlarging.LATENT)
    assert (hires.strength, hires.prompt, hires.guidance_scale) == (0.75, "a", 4.0)
    assert num_steps_at(hires.num_inference_steps, hires.strength) == 8, "steps are those run"
    assert opened(answer["images"][0]).size == (96, 64)
    info = answer["info"]
    assert (info["width"], info["height"], info["denoising_strength"]) == (48, 32, 0.75)
    said = {"Hires upscale": "2", "Hires steps": 8, "Hires upscaler": "Latent"}
    assert info["extra_generation_params"] == said
    assert "Size: 48x32, Model: painter, Denoising strength: 0.75" in info["infotexts"][0]
    assert "Hires upscale: 2, Hires steps: 8, Hires upscaler: Latent" in info["infotexts"][0]
    read = await server.post(PNG_INFO, image=answer["images"][0])
    assert read.json()["info"] == info["infotexts"][0], "the file says the same"


async def test_every_field_of_a_second_pass() -> None:
    names = ("ddim", "euler", "dpmpp_2m", "dpmpp_2m_karras")
    server = ImageServer(image_info(denoising=replace(DENOISING, schedulers=names)))
    body = {
        "prompt": "a",
        "enable_hr": True,
        "hr_scale": 1,
        "hr_resize_x": 100,
        "hr_resize_y": 0,
        "hr_upscaler": "None",
        "hr_second_pass_steps": 3,
        "hr_prompt": "b, c",
        "hr_negative_prompt": "d",
        "hr_cfg": 2,
        "hr_sampler_name": "DPM++ 2M",
        "hr_scheduler": "Karras",
        "hr_checkpoint_name": "Use same checkpoint",
        "firstphase_width": 0,
        "denoising_strength": 0.3,
        "width": 64,
        "height": 48,
    }
    answer = await answered(server, TXT2IMG, **body)
    hires = hires_of(server)
    assert (hires.width, hires.height, hires.enlarging) == (96, 72, Enlarging.LANCZOS)
    assert (hires.strength, hires.guidance_scale, hires.scheduler) == (0.3, 2, "dpmpp_2m_karras")
    assert (hires.prompt, hires.negative_prompt) == ("b, c", "d")
    assert num_steps_at(hires.num_inference_steps, 0.3) == 3
    read = (await server.post(PNG_INFO, image=answer["images"][0])).json()
    expected = {
        "Hires upscale": "1.5",
        "Hires steps": "3",
        "Hires upscaler": "Lanczos",
        "Hires sampler": "DPM++ 2M",
        "Hires schedule type": "Karras",
        "Hires CFG Scale": "2.0",
        "Hires prompt": "b, c",
        "Hires negative prompt": "d",
    }
    assert expected.items() <= read["parameters"].items()
    listed = (await server.client.get("/sdapi/v1/latent-upscale-modes")).json()
    for one in listed:
        await answered(server, TXT2IMG, prompt="a", enable_hr=True, hr_upscaler=one["name"])
    assert {request.params.hires.enlarging for request in server.engine.requests[1:]} == set(
        Enlarging
    )
    body |= {"hr_resize_x": 64, "hr_resize_y": 64, "hr_sampler_name": "Use same sampler"}
    answer = await answered(server, TXT2IMG, **body | {"hr_scheduler": None})
    assert (hires_of(server).width, hires_of(server).height) == (64, 64)
    assert "Hires resize: 64x64" in answer["info"]["infotexts"][0]


async def test_steps_of_a_second_pass_are_those_that_run() -> None:
    info = image_info()
    for _ in range(300):
        wanted, strength = random.randint(1, 60), random.randint(10, 100) / 100
        body = Txt2ImgRequest(
            prompt="a", enable_hr=True, hr_second_pass_steps=wanted, denoising_strength=strength
        )
        found = hires_body(body, info)["num_inference_steps"]
        assert num_steps_at(found, strength) == wanted, (wanted, strength)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"hr_upscaler": "R-ESRGAN 4x+"}, "send the image to extra-single-image"),
        ({"hr_scale": 64}, "hr_scale: must be"),
        ({"hr_scale": 0.5}, "hr_scale: must be"),
        ({"hr_scale": 9}, "whose limit is 16384"),
        ({"hr_resize_x": 60000, "hr_resize_y": 60000}, "whose limit is 16384"),
        ({"hr_resize_x": 1}, "too small"),
        ({"hr_second_pass_steps": 900, "denoising_strength": 0.5}, "a schedule of 1800"),
        ({"hr_second_pass_steps": -1}, "hr_second_pass_steps: must be"),
        ({"denoising_strength": 0}, "denoising_strength: must be"),
        ({"denoising_strength": 1.5}, "denoising_strength: must be"),
        ({"hr_cfg": 1000}, "hr_cfg: must be"),
        ({"hr_sampler_name": "Restart"}, "use one of DDIM"),
        ({"hr_checkpoint_name": "other"}, "both passes use one model"),
        ({"firstphase_width": 32}, "as width and height"),
        ({"hr_prompt": "b <lora:x:1>"}, "both passes use the adapters of prompt"),
        ({"hr_prompt": "x" * 4001}, "hr_prompt: must"),
        ({"steps": 1000, "batch_size": 10}, "4096 pixels x 1000 steps and 16384 pixels x 1000"),
    ],
)
async def test_refusals_of_a_second_pass(body: dict[str, Any], said: str) -> None:
    server = ImageServer(max_image_megapixel_steps=100)
    if "steps" in body:
        body = body | {"denoising_strength": 1}
    response = await server.client.post(TXT2IMG, json={"prompt": "a", "enable_hr": True, **body})
    assert said in refusal_of(response)
    assert server.engine.requests == []
