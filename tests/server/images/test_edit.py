"""`POST /v1/images/edits` and `/variations`: forms and JSON, the choice of task, input images."""

import io
import json
import textwrap
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.contract.draw import (
    EditParams,
    GuidanceKind,
    ImageTask,
    InpaintParams,
    MaskContent,
    Outpaint,
    RedrawParams,
)
from engine.contract.reference_images import ReferenceFacts
from tests.helpers.server.fake_images import DENOISING, image_info
from tests.helpers.server.fake_server import answer_of, assert_refused, error_of
from tests.helpers.server.image_server import (
    EDITS,
    VARIATIONS,
    ImageServer,
    data_url,
    mask_png,
    opened,
    png,
    saved,
)

NO_EDIT = (ImageTask.TEXT_TO_IMAGE, ImageTask.IMAGE_TO_IMAGE, ImageTask.INPAINT)


async def test_a_form_reaches_the_engine(server: ImageServer) -> None:
    response = await server.edit(
        png(40, 56),
        mask_png(40, 56),
        n="2",
        seed="7",
        strength="0.5",
        num_inference_steps="10",
        guidance_scale="3.25",
        soft_mask="true",
        feather="9",
        negative_prompt="",
        scheduler="",
        user="",
    )
    assert response.status_code == 200, response.text
    request = server.last
    params = request.params
    assert request.prompt == "make it blue"
    assert (params.task, params.n, params.seed) == (ImageTask.INPAINT, 2, 7)
    assert (params.width, params.height) == (40, 56)
    assert (params.strength, params.num_inference_steps) == (0.5, 10)
    assert (params.guidance_scale, params.soft_mask, params.feather) == (3.25, True, 9)
    assert params.scheduler is None
    (image,) = request.images
    expected = np.asarray(Image.open(io.BytesIO(png(40, 56)))).tobytes()
    assert (image.width, image.height, image.channels) == (40, 56, 3)
    assert image.data == expected
    assert request.mask is not None
    mask = np.frombuffer(request.mask.data, np.uint8).reshape(56, 40)
    assert (mask[:, :20] == 255).all() and (mask[:, 20:] == 0).all()


@pytest.mark.parametrize("name", ["image", "image[]", "image[0]", "images"])
async def test_names_of_the_file(server: ImageServer, name: str) -> None:
    files = [(name, ("x.png", png(), "image/png"))]
    answer_of(await server.client.post(EDITS, files=files, data={"prompt": "x"}))


async def test_json_with_data_urls(server: ImageServer) -> None:
    body = {
        "prompt": "x",
        "images": [{"image_url": data_url(png(40, 56))}],
        "mask": {"image_url": data_url(mask_png(40, 56))},
        "outpaint": {"left": 8, "bottom": 16},
    }
    answer = answer_of(await server.post(EDITS, **body))
    assert server.last.params.outpaint == Outpaint(left=8, bottom=16)
    assert answer["size"] == "48x72"


@pytest.mark.parametrize(
    "fields",
    [
        {"outpaint[left]": "8", "outpaint[top]": "16"},
        {"outpaint": '{"left": 8, "top": 16}'},
    ],
)
async def test_outpaint_in_a_form(server: ImageServer, fields: dict[str, str]) -> None:
    answer_of(await server.edit(**fields))
    assert server.last.params.task is ImageTask.INPAINT
    assert server.last.params.outpaint == Outpaint(left=8, top=16)
    assert server.last.params.strength == 1.0


TASKS: list[tuple[dict[str, str], bool, tuple[ImageTask, ...], ImageTask]] = [
    ({}, False, tuple(ImageTask), ImageTask.EDIT),
    ({}, False, NO_EDIT, ImageTask.IMAGE_TO_IMAGE),
    ({"strength": "0.5"}, False, tuple(ImageTask), ImageTask.IMAGE_TO_IMAGE),
    ({}, True, tuple(ImageTask), ImageTask.INPAINT),
    ({"strength": "0.5"}, True, tuple(ImageTask), ImageTask.INPAINT),
    ({"outpaint[left]": "0"}, False, tuple(ImageTask), ImageTask.EDIT),
    ({"task": "image_to_image"}, False, tuple(ImageTask), ImageTask.IMAGE_TO_IMAGE),
    ({"task": "edit", "strength": "0.5"}, False, tuple(ImageTask), ImageTask.EDIT),
    ({"task": "inpaint"}, True, tuple(ImageTask), ImageTask.INPAINT),
]


@pytest.mark.parametrize(("fields", "with_mask", "tasks", "expected"), TASKS)
async def test_choice_of_task(
    fields: dict[str, str], with_mask: bool, tasks: tuple[ImageTask, ...], expected: ImageTask
) -> None:
    server = ImageServer(image_info(tasks=tasks))
    answer = answer_of(await server.edit(mask=mask_png() if with_mask else None, **fields))
    assert server.last.params.task is expected
    assert answer["task"] == expected.value


async def test_a_models_guidance_for_instructions() -> None:
    server = ImageServer(image_info(denoising=replace(DENOISING, default_edit_guidance_scale=2.0)))
    for fields, expected in (({}, 2.0), ({"guidance_scale": "3"}, 3.0), ({"strength": "1"}, 4.0)):
        answer_of(await server.edit(**fields))
        assert server.last.params.guidance_scale == expected


async def test_an_inverted_mask_marks_what_is_kept(server: ImageServer) -> None:
    answer_of(await server.edit(mask=mask_png(), invert_mask="true"))
    assert server.last.mask is not None
    mask = np.frombuffer(server.last.mask.data, np.uint8).reshape(48, 64)
    assert (mask[:, :32] == 0).all() and (mask[:, 32:] == 255).all()
    answer_of(await server.edit(mask=mask_png(marked=False), mask_mode="alpha", invert_mask="true"))
    white = saved(Image.new("L", (64, 48), 255))
    error = error_of(await server.edit(mask=white, invert_mask="true"))
    assert "nothing is left to edit" in error["message"]


async def test_what_is_under_a_mask_may_be_filled(server: ImageServer) -> None:
    answer = (await server.edit(mask=mask_png(), strength="0.5", mask_content="fill")).json()
    assert server.last.params.mask_content is MaskContent.FILL
    assert answer["warnings"] == []
    answer = (await server.edit(mask=mask_png(), mask_content="fill")).json()
    assert [line.split()[0] for line in answer["warnings"]] == ["mask_content"]
    await server.edit(mask=mask_png())
    assert server.last.params.mask_content is MaskContent.ORIGINAL


async def test_fields_without_effect_are_warned_about(server: ImageServer) -> None:
    answer = (await server.edit(task="edit", strength="0.5", feather="3")).json()
    assert [line.split()[0] for line in answer["warnings"]] == ["strength", "feather"]


REFUSED: list[tuple[dict[str, str], str, str]] = [
    ({"n": "two"}, "n", "integer"),
    ({"n": "2.0"}, "n", "integer"),
    ({"n": "99999999999999999999999"}, "n", "integer"),
    ({"guidance_scale": "nan"}, "guidance_scale", "number"),
    ({"guidance_scale": "inf"}, "guidance_scale", "number"),
    ({"stream": "yes"}, "stream", "true or false"),
    ({"strength": "0"}, "strength", "greater than 0"),
    ({"strength": "0.01", "num_inference_steps": "4"}, "strength", "at least 0.25"),
    ({"outpaint": "left"}, "outpaint", "JSON object"),
    ({"outpaint[left]": "-1"}, "outpaint.left", "greater than or equal to 0"),
    ({"outpaint[left]": "x"}, "outpaint.left", "integer"),
    ({"outpaint[lef]": "8"}, "outpaint", "left, right, top, bottom"),
    ({"mask_mode": "alpha"}, "mask_mode", "needs a mask"),
    ({"invert_mask": "true"}, "invert_mask", "needs a mask"),
    ({"mask_content": "fill"}, "mask_content", "needs a mask"),
    ({"mask_content": "noise"}, "mask_content", "must be"),
    ({"crop_to_mask": "true"}, "crop_to_mask", "needs a mask"),
    ({"task": "inpaint"}, "task", "mask or outpaint"),
    ({"task": "text_to_image"}, "task", "image_to_image"),
    ({"outpaint[left]": "4096"}, "outpaint", "crop_to_mask"),
    ({"prompt": ""}, "prompt", "empty"),
    ({"size": "8x8"}, "size", "at least 32"),
    ({"size": "1024x1024"}, "size", "such as 128x128"),
]


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED)
async def test_refusals(
    server: ImageServer, fields: dict[str, str], param: str, words: str
) -> None:
    assert_refused(await server.edit(**fields), param, words)
    assert server.engine.requests == []


async def test_masks_that_cannot_be_used(server: ImageServer) -> None:
    assert_refused(await server.edit(mask=mask_png(32, 48)), "mask", "32x48")
    error = error_of(await server.edit(mask=mask_png(marked=False), mask_mode="alpha"))
    assert error["param"] == "mask"
    dim = saved(Image.new("L", (64, 48), 90))
    error = error_of(await server.edit(mask=dim, mask_mode="luminance"))
    assert "soft_mask" in error["message"]
    answer_of(await server.edit(mask=dim, mask_mode="luminance", soft_mask="true"))
    error = error_of(await server.edit(mask=mask_png(), task="edit"))
    assert error["param"] == "task"


BAD_FILES = {
    "nothing": b"",
    "text": b"hello",
    "truncated": png()[:60],
    "gif": saved(Image.new("L", (64, 64)), "GIF"),
    "bomb": saved(Image.new("1", (12000, 12000))),
}


@pytest.mark.parametrize("name", BAD_FILES)
async def test_bad_files_are_the_clients_fault(server: ImageServer, name: str) -> None:
    files = [("image", ("a.png", BAD_FILES[name], "image/png"))]
    error = error_of(await server.client.post(EDITS, files=files, data={"prompt": "x"}))
    assert error["param"] in ("image", "images")
    error = error_of(
        await server.post(EDITS, prompt="x", images=[{"image_url": data_url(BAD_FILES[name])}])
    )
    assert error["param"] == "image"


REFERENCES: list[tuple[Any, str, str]] = [
    ({"image_url": "https://example.com/a.png"}, "image", "does not fetch"),
    ({"image_url": "HTTP://169.254.169.254/"}, "image", "does not fetch"),
    ({"image_url": "file:///etc/passwd"}, "image", "data URL"),
    ({"image_url": "data:image/png,abc"}, "image", "data URL"),
    ({"image_url": "data:image/png;base64,###"}, "image", "base64"),
    ({"image_url": "data:image/png;base64,é"}, "image", "base64"),
    ({"file_id": "file-1"}, "image", "file_id"),
    ({"data": "aGk="}, "image", ""),
    ({}, "image", "image_url"),
    ({"image_url": 5}, "images[0].image_url", "string"),
    ("data:", "image", "data URL"),
    ("cat.png", "image", "data URL"),
    ("", "image", "is empty"),
    (5, "images[0]", "object"),
]


@pytest.mark.parametrize(("reference", "param", "words"), REFERENCES)
async def test_bad_references(server: ImageServer, reference: Any, param: str, words: str) -> None:
    assert_refused(await server.post(EDITS, prompt="x", images=[reference]), param, words)


async def test_each_of_several_images_is_edited_by_itself(server: ImageServer) -> None:
    files = [
        ("image[]", (f"{i}.png", png(mode=mode))) for i, mode in enumerate(("RGB", "L", "RGB"))
    ]
    data = {"prompt": "x", "n": "2", "seed": "5"}
    body = answer_of(await server.client.post(EDITS, files=files, data=data))
    request, answer = server.last, body
    assert (len(request.images), request.params.n) == (3, 6)
    assert [image["seed"] for image in answer["data"]] == [5, 6, 7, 8, 9, 10]
    (warning,) = answer["warnings"]
    assert "each of the 3 images was edited separately" in warning
    single = (await server.edit(seed="5", n="1")).json()["usage"]
    assert answer["usage"]["input_tokens_details"]["image_tokens"] == (
        3 * single["input_tokens_details"]["image_tokens"]
    )


REFERENCES_OF_ANY_SIZE = ReferenceFacts(max_images=3, size_multiple=8, max_pixels=64 * 64)


async def test_a_model_that_combines_images_gets_them_all() -> None:
    server = ImageServer(image_info(references=REFERENCES_OF_ANY_SIZE))
    sent = [{"image_url": data_url(png(*size))} for size in ((40, 56), (128, 64), (32, 32))]
    answer = answer_of(await server.post(EDITS, prompt="x", images=sent, n=2, seed=5))
    request = server.last
    assert (len(request.images), request.params.n) == (3, 2)
    assert (request.params.width, request.params.height) == (40, 56)
    assert [image["seed"] for image in answer["data"]] == [5, 6]
    assert answer["warnings"] == []
    answer_of(await server.post(EDITS, prompt="x", images=sent[1:]))
    assert (server.last.params.width, server.last.params.height) == (88, 40)
    four = await server.post(EDITS, prompt="x", images=[*sent, sent[0]])
    assert_refused(four, "image", "painter combines at most 3 in an edit")
    redrawn = answer_of(await server.post(EDITS, prompt="x", images=sent[:1] * 2, strength=0.5))
    assert len(redrawn["data"]) == 2, "other tasks take the images one by one"


@pytest.mark.parametrize("mask", [None, mask_png(40, 56)])
async def test_reference_images_count_in_the_budget(mask: bytes | None) -> None:
    """40x56 pixels, once drawn and once beside them, in 10 steps."""
    steps = {"num_inference_steps": "10"}
    references = replace(REFERENCES_OF_ANY_SIZE, sees_inpainted=True)
    for limit, fits in ((0.044, False), (0.045, True)):
        server = ImageServer(image_info(references=references), max_image_megapixel_steps=limit)
        assert (await server.edit(png(40, 56), mask, **steps)).is_success is fits


async def test_reference_images_are_not_weighted() -> None:
    guided = replace(DENOISING, guidance=GuidanceKind.CLASSIFIER_FREE)
    server = ImageServer(image_info(references=REFERENCES_OF_ANY_SIZE, denoising=guided))
    answer = (await server.edit(image_guidance_scale="2", input_fidelity="high")).json()
    assert [warning.split()[0] for warning in answer["warnings"]] == [
        "input_fidelity",
        "image_guidance_scale",
    ]


async def test_sixteen_images_in_json(server: ImageServer) -> None:
    answer = answer_of(
        await server.post(EDITS, prompt="x", images=[{"image_url": data_url(png())}] * 16)
    )
    assert len(answer["data"]) == 16


async def test_several_images_need_one_size(server: ImageServer) -> None:
    files = [("image[]", ("a.png", png(64, 48))), ("image[]", ("b.png", png(48, 48)))]
    assert_refused(
        await server.client.post(EDITS, files=files, data={"prompt": "x"}), "size", "64x48, 48x48"
    )
    data = {"prompt": "x", "size": "64x64"}
    answer = answer_of(await server.client.post(EDITS, files=files, data=data))
    assert answer["size"] == "64x64"


async def test_several_images_are_bounded(server: ImageServer) -> None:
    files: list[Any] = [("image[]", ("a.png", png(), "image/png"))] * 2
    assert_refused(
        await server.client.post(EDITS, files=files, data={"prompt": "x", "n": "9"}),
        "n",
        "18 results",
    )
    response = await server.client.post(EDITS, files=files * 9, data={"prompt": "x"})
    assert "16" in error_of(response)["message"]
    masked = [*files, ("mask", ("m.png", mask_png()))]
    assert_refused(
        await server.client.post(EDITS, files=masked, data={"prompt": "x"}), "mask", "2 images"
    )
    error = error_of(await server.client.post(VARIATIONS, files=files))
    assert "a variation takes one" in error["message"]
    assert server.engine.requests == []
    response = await server.post(EDITS, prompt="x", images=[])
    assert error_of(response)["param"] == "images"
    response = await server.client.post(EDITS, data={"prompt": "x"}, files={"other": b"x"})
    assert response.status_code == 400


async def test_input_pixels_are_bounded_before_decoding() -> None:
    server = ImageServer(max_image_input_pixels=64 * 48)
    assert (await server.edit()).status_code == 200
    assert error_of(await server.edit(png(65, 48)))["param"] == "image"


SIZES = [
    ((64, 48), None, (64, 48)),
    ((50, 50), None, (50, 50)),
    ((1000, 500), None, (176, 88)),
    ((16, 16), None, (32, 32)),
    ((64, 48), "96x80", (96, 80)),
    ((64, 48), "auto", (64, 48)),
]


@pytest.mark.parametrize(("given", "asked", "expected"), SIZES)
async def test_sizes_of_edits(
    server: ImageServer, given: tuple[int, int], asked: str | None, expected: tuple[int, int]
) -> None:
    answer = answer_of(await server.edit(png(*given), **({} if asked is None else {"size": asked})))
    assert (server.last.params.width, server.last.params.height) == expected
    assert opened(answer["data"][0]["b64_json"]).size == expected


async def test_an_extreme_shape_is_refused() -> None:
    error = error_of(await ImageServer().edit(png(2000, 2)))
    assert "less extreme" in error["message"]


async def test_a_mask_on_a_large_image_needs_cropping(server: ImageServer) -> None:
    large, mask = png(400, 300), mask_png(400, 300)
    assert "crop_to_mask" in error_of(await server.edit(large, mask))["message"]
    response = await server.edit(large, mask, crop_to_mask="true")
    assert response.json()["size"] == "400x300"
    assert (await server.edit(large, mask, size="96x72")).json()["size"] == "96x72"


async def test_fidelity_keeps_closer_to_the_image(server: ImageServer) -> None:
    params = [
        ({"input_fidelity": "high"}, (2.0, 0.5)),
        ({"input_fidelity": "low"}, (1.5, 0.8)),
        ({}, (1.5, 0.8)),
    ]
    for fields, (image_guidance, strength) in params:
        answer = (await server.edit(**fields)).json()
        assert server.last.params.image_guidance_scale == image_guidance
        answer["warnings"] += (await server.edit(task="image_to_image", **fields)).json()[
            "warnings"
        ]
        assert server.last.params.strength == strength
        assert answer["warnings"] == []
    response = await server.edit(input_fidelity="highest")
    assert error_of(response)["param"] == "input_fidelity"


@pytest.mark.parametrize(
    "fields",
    [
        {"image_guidance_scale": "1.2"},
        {"strength": "0.9"},
        {"outpaint[left]": "16"},
    ],
)
async def test_fidelity_beside_what_says_more_is_warned_about(
    server: ImageServer, fields: dict[str, str]
) -> None:
    response = await server.edit(input_fidelity="high", **fields)
    assert [line.split()[0] for line in response.json()["warnings"]] == ["input_fidelity"]
    params = server.last.params
    expected = {"image_guidance_scale": EditParams, "strength": RedrawParams}
    assert type(params) is expected.get(next(iter(fields)), InpaintParams)
    given = {"image_guidance_scale": 1.2, "strength": 0.9}.get(next(iter(fields)), 1.0)
    assert given == (params.image_guidance_scale if type(params) is EditParams else params.strength)


async def test_empty_files_are_refused(server: ImageServer) -> None:
    image, empty = ("a.png", png()), ("b.png", b"")
    for files, param in (
        ([("image", image), ("mask", empty)], "mask"),
        ([("image[]", image), ("image[]", empty)], "image"),
        ([("image", empty)], "image"),
    ):
        assert_refused(
            await server.client.post(EDITS, files=files, data={"prompt": "x"}), param, "0 bytes"
        )
    body = {"prompt": "x", "image": data_url(png()), "mask": data_url(b"")}
    assert_refused(await server.post(EDITS, **body), "mask", "0 bytes")
    body["mask"] = ""
    assert error_of(await server.post(EDITS, **body))["param"] == "mask"
    assert server.engine.requests == []


async def test_blank_fields_of_a_browsers_form_are_left_out(server: ImageServer) -> None:
    """A file field that nobody chose a file for has no file name, a text field no text."""
    blank = ("mask", ("", b"", "application/octet-stream"))
    files = [("image", ("a.png", png())), blank]
    data = {"prompt": "x", "size": "", "n": "", "scheduler": "", "model": "", "quality": ""}
    answer_of(await server.client.post(EDITS, files=files, data=data))
    assert server.last.mask is None


async def test_variations(server: ImageServer) -> None:
    answer_of(await server.vary(n="2", size="64x64", user="u"))
    params = server.last.params
    assert (params.task, params.strength, params.n) == (ImageTask.IMAGE_TO_IMAGE, 0.7, 2)
    assert server.last.prompt == ""
    # Two empty prompts would be two equal rows.
    assert params.guidance_scale == 1.0
    await server.vary(prompt="a circle")
    assert (server.last.prompt, server.last.params.guidance_scale) == ("a circle", 4.0)
    assert (
        await server.post(VARIATIONS, images=[{"image_url": data_url(png())}], guidance_scale=3)
    ).status_code == 200
    assert server.last.params.guidance_scale == 3
    server = ImageServer(image_info(tasks=(ImageTask.EDIT,)))
    assert "image_to_image" in error_of(await server.vary())["message"]


async def test_metadata_of_an_edit_replays_it(server: ImageServer) -> None:
    answer = (await server.edit(mask=mask_png(), seed="3", n="2", strength="0.75")).json()
    image = answer["data"][1]["b64_json"]
    fields = json.loads(opened(image).info["tandem"])
    body = {
        **fields,
        "images": [{"image_url": data_url(png())}],
        "mask": {"image_url": data_url(mask_png())},
    }
    replayed = await server.post(EDITS, **body)
    assert replayed.json()["data"][0]["b64_json"] == image
    assert replayed.json()["warnings"] == []


async def test_text_in_the_place_of_a_file_is_named(server: ImageServer) -> None:
    """curl sends this where the @ was forgotten."""
    for field in ("image", "mask"):
        files: list[Any] = [("image", ("a.png", png()))] if field == "mask" else []
        files.append((field, (None, "in.png")))
        response = await server.client.post(EDITS, data={"prompt": "x"}, files=files)
        assert_refused(response, field, f"{field}=@")


async def test_a_form_without_a_file_is_asked_for_one(server: ImageServer) -> None:
    for content in (None, b""):
        sent: Any = {"image": ("", content)} if content is not None else {"user": (None, "x")}
        assert_refused(
            await server.client.post(EDITS, data={"prompt": "x"}, files=sent), "image", "image is"
        )
    files = [("image", ("a.png", png())), ("image[]", ("", b""))]
    answer_of(await server.client.post(EDITS, data={"prompt": "x"}, files=files))


@pytest.mark.parametrize("name", ["image", "image[]", "images"])
async def test_json_takes_strings_under_the_names_of_forms(server: ImageServer, name: str) -> None:
    url = data_url(png(40, 56))
    bare = url.partition(",")[2]
    in_lines = "\r\n".join(textwrap.wrap(bare, 76)) + "\n"
    for value in (url, [url], bare, in_lines, {"image_url": url}):
        body = {"prompt": "x", name: value, "mask": data_url(mask_png(40, 56))}
        answer = answer_of(await server.post(EDITS, **body))
        assert answer["size"] == "40x56"


async def test_images_under_two_names_are_refused(server: ImageServer) -> None:
    assert_refused(
        await server.post(EDITS, prompt="x", images=[data_url(png())], image=data_url(png())),
        "images",
        "one of them",
    )


async def test_a_format_too_small_for_the_result_is_refused_before_the_work() -> None:
    server = ImageServer(max_image_input_pixels=1 << 24)
    image = png(16_384, 2)
    response = await server.edit(
        image, saved(Image.new("L", (16_384, 2), 255)), crop_to_mask="true", output_format="webp"
    )
    assert error_of(response)["param"] == "output_format"
    assert server.engine.requests == []


async def test_other_content_types_are_a_415(server: ImageServer) -> None:
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "image/png"):
        headers = {"Content-Type": content_type}
        response = await server.client.post(EDITS, content=b"x", headers=headers)
        assert "multipart/form-data" in error_of(response, 415)["message"]
    files = [("image", ("a.png", png(), "image/png"))]
    response = await server.client.post("/v1/images/generations", files=files)
    assert error_of(response, 415)


@pytest.mark.parametrize("with_length", [True, False])
async def test_a_form_above_the_body_limit_is_a_413(with_length: bool) -> None:
    server = ImageServer(max_body_bytes=2048)
    head = b'--B\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
    body = head + bytes(5000) + b"\r\n--B--\r\n"

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 512):
            yield body[start : start + 512]

    content = body if with_length else chunks()
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    response = await server.client.post(EDITS, content=content, headers=headers)
    assert error_of(response, 413)["code"] == "request_too_large"
