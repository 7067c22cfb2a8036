"""`POST /v1/images/generations`: what reaches the engine, what comes back, what is refused."""

import json
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.contract.draw import GuidanceKind, ImageModelInfo, ImageTask, PromptSyntax
from engine.contract.status import Phase
from engine.errors import ModelNotReady
from tests.helpers.server.fake_engine import Failure
from tests.helpers.server.fake_images import DENOISING, image_info, picture
from tests.helpers.server.fake_server import answer_of, assert_refused, error_of
from tests.helpers.server.fake_texts import model_info
from tests.helpers.server.image_server import (
    EDITS,
    GENERATIONS,
    VARIATIONS,
    ImageServer,
    named_events,
    opened,
)


async def test_defaults_are_the_models(server: ImageServer) -> None:
    answer = (await server.generate()).json()
    params = server.last.params
    assert server.last.prompt == "a red circle"
    assert (params.task, params.n) == (ImageTask.TEXT_TO_IMAGE, 1)
    assert (params.width, params.height) == (64, 64)
    assert (params.num_inference_steps, params.guidance_scale) == (4, 4.0)
    assert (params.scheduler, params.negative_prompt, params.num_previews) == (None, "", 0)
    assert params.prompt_syntax is PromptSyntax.PLAIN
    assert answer["size"] == "64x64"
    assert (answer["output_format"], answer["background"]) == ("png", "opaque")
    assert answer["scheduler"] == "ddim"
    assert answer["seed"] == answer["data"][0]["seed"] == params.seed
    assert answer["warnings"] == []


async def test_every_field_reaches_the_engine() -> None:
    server = ImageServer(engine={"scheduling_policy": "priority"})
    fields = {
        "negative_prompt": "blurry",
        "num_inference_steps": 7,
        "guidance_scale": 3.5,
        "guidance_rescale": 0.7,
        "guidance_start": 0.1,
        "guidance_end": 0.9,
        "seed": 11,
        "scheduler": "euler",
        "clip_skip": 2,
    }
    response = await server.generate(
        **fields, size="96x128", n=3, prompt_syntax="a1111", priority=-2, user="u", style="vivid"
    )
    assert response.status_code == 200
    assert "X-Ignored-Fields" not in response.headers
    params = server.last.params
    for name, value in fields.items():
        assert getattr(params, name) == value, name
    assert (params.width, params.height, params.n) == (96, 128, 3)
    assert params.prompt_syntax is PromptSyntax.A1111
    assert server.last.priority == -2


async def test_other_servers_names_are_understood(server: ImageServer) -> None:
    response = await server.generate(steps=7, cfg_scale=2.5, num_images=2, width=96.0, height=128)
    assert response.status_code == 200 and "X-Ignored-Fields" not in response.headers
    params = server.last.params
    assert (params.num_inference_steps, params.guidance_scale, params.n) == (7, 2.5, 2)
    assert (params.width, params.height) == (96, 128)
    answer_of(await server.generate(steps=3, num_inference_steps=3, cfg_scale=None))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"steps": 3, "num_inference_steps": 4}, "steps"),
        ({"steps": "3"}, "num_inference_steps"),
        ({"width": 64}, "height"),
        ({"width": "64", "height": 64}, "width"),
        ({"width": 64, "height": 96, "size": "64x64"}, "width"),
        ({"strength": 0.5}, "strength"),
        ({"outpaint": {"left": 8}}, "outpaint"),
        ({"sigmas": [1.0, 0.5]}, "sigmas"),
        ({"prompt_2": "a"}, "prompt_2"),
    ],
)
async def test_what_would_change_the_picture_is_not_passed_over(
    body: dict[str, Any], param: str
) -> None:
    response = await ImageServer().generate(**body)
    assert response.status_code == 400
    assert error_of(response)["param"] == param


async def test_images_come_in_the_order_of_their_seeds(server: ImageServer) -> None:
    answer = (await server.generate(n=3, seed=41)).json()
    assert [image["seed"] for image in answer["data"]] == [41, 42, 43]
    for index, image in enumerate(answer["data"]):
        expected = picture(server.last, index)
        assert np.asarray(opened(image["b64_json"])).tobytes() == expected.data


async def test_seeds_differ_between_requests_that_give_none(server: ImageServer) -> None:
    seeds = {(await server.generate()).json()["seed"] for _ in range(5)}
    assert len(seeds) == 5


async def test_usage_counts_tokens_and_blocks(server: ImageServer) -> None:
    usage = (await server.generate(n=2, size="64x32")).json()["usage"]
    details = {"text_tokens": 3, "image_tokens": 0}
    assert usage == {
        "input_tokens": 3,
        "input_tokens_details": details,
        "output_tokens": 2 * 8 * 4,
        "total_tokens": 3 + 64,
    }


@pytest.mark.parametrize(
    ("quality", "steps", "name"),
    [
        ("auto", 4, "medium"),
        ("low", 2, "low"),
        ("medium", 4, "medium"),
        ("standard", 4, "medium"),
        ("high", 6, "high"),
        ("hd", 6, "high"),
        ("xhigh", 8, "xhigh"),
        ("max", 12, "max"),
    ],
)
async def test_quality_is_steps(server: ImageServer, quality: str, steps: int, name: str) -> None:
    assert (await server.generate(quality=quality)).json()["quality"] == name
    assert server.last.params.num_inference_steps == steps
    await server.generate(quality=quality, num_inference_steps=9)
    assert server.last.params.num_inference_steps == 9


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
async def test_formats(server: ImageServer, output_format: str) -> None:
    answer = (await server.generate(output_format=output_format)).json()
    assert answer["output_format"] == output_format
    assert opened(answer["data"][0]["b64_json"]).format == output_format.upper()


async def test_compression_makes_files_smaller(server: ImageServer) -> None:
    sizes = [
        len((await server.generate(output_format="jpeg", output_compression=quality)).content)
        for quality in (5, 100)
    ]
    assert sizes[0] < sizes[1]


async def test_metadata_replays_the_image(server: ImageServer) -> None:
    body = {"negative_prompt": "grey", "n": 2, "seed": 5, "scheduler": "euler", "clip_skip": 1}
    first = (await server.generate(**body, prompt_syntax="comfy", size="64x96")).json()
    second_image = first["data"][1]["b64_json"]
    chunks = opened(second_image).info
    assert "Seed: 6" in chunks["parameters"]
    replayed = await server.client.post(GENERATIONS, json=json.loads(chunks["tandem"]))
    assert "X-Ignored-Fields" not in replayed.headers
    assert replayed.json()["data"][0]["b64_json"] == second_image


async def test_a_replay_with_other_files_warns_by_name() -> None:
    digests = {name: f"{random.getrandbits(256):064x}" for name in ("painter", "ink", "neon")}
    adapters = {name: digests[name] for name in ("ink", "neon")}
    info = image_info(digest=digests["painter"], adapters=("ink", "neon"), adapter_digests=adapters)
    server = ImageServer(info)
    answer = (await server.generate(loras=[{"name": "ink"}], seed=5)).json()
    chunks = opened(answer["data"][0]["b64_json"]).info
    fields = json.loads(chunks["tandem"])
    made_with = {"model": digests["painter"][:16], "adapters": {"ink": digests["ink"][:16]}}
    assert fields["made_with"] == answer["made_with"] == made_with
    assert f"Model hash: {digests['painter'][:10]}" in chunks["parameters"]
    assert f'Lora hashes: "ink: {digests["ink"][:10]}"' in chunks["parameters"]

    async def warnings(info: ImageModelInfo) -> list[str]:
        other = ImageServer(info)
        replayed = await other.post(GENERATIONS, **fields)
        assert "X-Ignored-Fields" not in replayed.headers
        found: list[str] = replayed.json()["warnings"]
        return found

    assert await warnings(info) == []
    assert await warnings(replace(info, adapter_digests=adapters | {"neon": "f" * 64})) == []
    [other_model] = await warnings(replace(info, digest="0" * 64))
    assert "the files of model 'painter' have changed: they are 0000000000000000 now" in other_model
    assert digests["painter"][:16] in other_model
    swapped = replace(info, digest="0" * 64, adapter_digests=adapters | {"ink": "f" * 64})
    [_, other_adapter] = await warnings(swapped)
    assert "the files of adapter 'ink' have changed: they are ffffffffffffffff now" in other_adapter


@pytest.mark.parametrize(
    "wrong",
    [
        "abcdef01",
        {"model": "abc"},
        {"model": "x" * 16},
        {"adapters": {"a": 1}},
        {"adapters": {str(n): "a" * 16 for n in range(17)}},
        {"modle": "a" * 16},
    ],
)
async def test_digests_that_are_none_are_refused(wrong: Any) -> None:
    error = error_of(await ImageServer().generate(made_with=wrong))
    assert error["param"].startswith("made_with")


async def test_metadata_can_be_switched_off() -> None:
    server = ImageServer(image_metadata=False)
    answer = (await server.generate(prompt="my secret")).json()
    assert opened(answer["data"][0]["b64_json"]).info == {}


async def test_warnings_of_server_and_engine_come_once() -> None:
    server = ImageServer(image_info(denoising=replace(DENOISING, guidance=GuidanceKind.NONE)))
    server.engine.warnings = ("negative_prompt has no effect: because",)
    answer = (await server.generate(n=2, guidance_scale=5, negative_prompt="x")).json()
    assert answer["warnings"] == [
        "guidance_scale has no effect: painter is not guided",
        "negative_prompt has no effect: because",
    ]


async def test_the_ids_header_and_ignored_fields(server: ImageServer) -> None:
    response = await server.generate(mystery=1)
    assert response.headers["X-Image-Id"] == response.json()["id"] == server.last.request_id
    assert response.headers["X-Ignored-Fields"] == "mystery"


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"size": "big"}, "size", "WIDTHxHEIGHT"),
    ({"size": ""}, "size", "or auto"),
    ({"size": " "}, "size", "or auto"),
    ({"scheduler": ""}, "scheduler", "ddim, euler, dpmpp_2m"),
    ({"quality": ""}, "quality", "low"),
    ({"response_format": ""}, "response_format", "url"),
    ({"size": "64"}, "size", "WIDTHxHEIGHT"),
    ({"size": "64x64x64"}, "size", "WIDTHxHEIGHT"),
    ({"size": "-64x64"}, "size", "WIDTHxHEIGHT"),
    ({"size": "64x60"}, "size", "multiples of 8"),
    ({"size": "0x0"}, "size", "at least 32"),
    ({"size": "24x64"}, "size", "at least 32"),
    ({"size": "999999x999999"}, "size", "limit is 16384"),
    ({"size": "136x128"}, "size", "17408 pixels"),
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"n": 11}, "n", "less than or equal to 10"),
    ({"n": True}, "n", "integer"),
    ({"n": 1.5}, "n", "integer"),
    ({"prompt": ""}, "prompt", "empty"),
    ({"prompt": " \n"}, "prompt", "empty"),
    ({"prompt": None}, "prompt", "string"),
    ({"prompt": "x" * 4001}, "prompt", "4000"),
    ({"negative_prompt": "x" * 4001}, "negative_prompt", "4000"),
    ({"seed": -1}, "seed", "greater than or equal to 0"),
    ({"seed": 2**63}, "seed", "less than or equal"),
    ({"seed": 2**63 - 2, "n": 3}, "seed", "smaller seed"),
    ({"scheduler": "warp"}, "scheduler", "ddim, euler, dpmpp_2m"),
    ({"quality": "ultra"}, "quality", "low"),
    ({"output_format": "gif"}, "output_format", "png"),
    ({"output_compression": 50}, "output_compression", "jpeg or webp"),
    ({"output_compression": 101, "output_format": "jpeg"}, "output_compression", "100"),
    ({"partial_images": 1}, "partial_images", "stream"),
    ({"partial_images": 4, "stream": True}, "partial_images", "3"),
    ({"guidance_start": 0.9, "guidance_end": 0.1}, "guidance_start", "guidance_end"),
    ({"num_inference_steps": 0}, "num_inference_steps", "1"),
    ({"num_inference_steps": 1001}, "num_inference_steps", "1000"),
    ({"guidance_scale": "7"}, "guidance_scale", "number"),
    ({"prompt_syntax": "midjourney"}, "prompt_syntax", "plain"),
    ({"image": "data:,"}, "image", "/v1/images/edits"),
    ({"lora": [{"name": "x"}]}, "lora", "not supported"),
    ({"model": "nope"}, "model", "painter"),
]


@pytest.mark.parametrize(("body", "param", "words"), REFUSED)
async def test_refusals_name_field_and_limit(
    server: ImageServer, body: dict[str, Any], param: str, words: str
) -> None:
    status = 404 if param == "model" else 400
    assert_refused(await server.generate(**body), param, words, status=status)
    assert server.engine.requests == []


async def test_nulls_are_defaults_and_whole_floats_are_integers(server: ImageServer) -> None:
    names = ("model", "n", "size", "quality", "seed", "stream", "loras", "image", "user")
    assert (await server.generate(**dict.fromkeys(names))).status_code == 200
    assert (await server.generate(n=2.0, guidance_scale=2)).status_code == 200
    assert server.last.params.n == 2


async def test_the_budget_is_computed_for_the_client() -> None:
    server = ImageServer(max_image_megapixel_steps=1.0)
    assert (await server.generate(size="64x64", num_inference_steps=244)).status_code == 200
    error = error_of(await server.generate(size="64x64", num_inference_steps=123, n=2))
    assert "4096 pixels x 123 steps x 2 images are 1.0 megapixel-steps" in error["message"]
    assert "the limit is 1 per request" in error["message"]


async def test_a_task_that_the_model_cannot_do() -> None:
    server = ImageServer(image_info(tasks=(ImageTask.EDIT,)))
    error = error_of(await server.generate())
    assert error["code"] == "unsupported_feature"
    assert "does not support text_to_image; it supports edit" in error["message"]


async def test_text_and_image_models_keep_to_their_routes() -> None:
    server = ImageServer(image_info(), model_info("writer"))
    assert (await server.generate()).status_code == 200
    error = error_of(await server.generate(model="writer"))
    assert "/v1/chat/completions" in error["message"] and "painter" in error["message"]
    messages = [{"role": "user", "content": "hi"}]
    chat = {"model": "painter", "messages": messages}
    error = error_of(await server.post("/v1/chat/completions", **chat))
    assert "/v1/images/generations" in error["message"] and "writer" in error["message"]
    cards = (await server.client.get("/v1/models")).json()["data"]
    assert [card["id"] for card in cards] == ["writer", "painter"]
    card = (await server.client.get("/v1/models/painter")).json()
    assert card["default_size"] == "64x64" and "edit" in card["tasks"]


async def test_without_an_image_model_the_answer_says_so() -> None:
    server = ImageServer(model_info("writer"))
    assert "no image model" in error_of(await server.generate())["message"]


async def test_two_image_models_must_be_told_apart() -> None:
    server = ImageServer(image_info("a"), image_info("b"))
    error = error_of(await server.generate())
    assert "a, b" in error["message"]
    assert (await server.generate(model="b")).json()["model"] == "b"


async def test_a_loading_model_is_a_503(server: ImageServer) -> None:
    server.engine.set_status("painter", Phase.LOADING)
    assert error_of(await server.generate(), 503)["code"] == "model_not_ready"
    server.engine.set_status("painter", Phase.READY)
    server.engine.submit_error = ModelNotReady("not yet")
    response = await server.generate()
    assert error_of(response, 503)["message"] == "not yet"
    assert "Retry-After" in response.headers


async def test_engine_failures_become_answers(server: ImageServer) -> None:
    server.engine.failure = Failure(after=2, code="invalid_value", message="mask is odd")
    assert error_of(await server.generate(n=2))["message"] == "mask is odd"
    server.engine.failure = Failure(after=0, code="internal_error", message="secret detail")
    assert "secret" not in error_of(await server.generate(), 500)["message"]
    assert not server.engine.live


async def test_a_stream_has_previews_and_one_end_per_image(server: ImageServer) -> None:
    response = await server.generate(stream=True, partial_images=2, n=2, seed=9)
    assert response.headers["X-Image-Id"].startswith("img-")
    events = named_events(response.text)
    assert all(name == data["type"] for name, data in events)
    partials = [data for name, data in events if name == "image_generation.partial_image"]
    assert sorted((p["index"], p["partial_image_index"]) for p in partials) == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    ends = [data for name, data in events if name == "image_generation.completed"]
    assert sorted((end["index"], end["seed"]) for end in ends) == [(0, 9), (1, 10)]
    assert len(partials) + len(ends) == len(events)
    for data in (*partials, *ends):
        assert opened(data["b64_json"]).size == (64, 64)
        assert data["size"] == "64x64" and data["quality"] == "medium"


async def test_the_usages_of_a_stream_add_up_to_the_whole_answers(server: ImageServer) -> None:
    whole = (await server.generate(n=3)).json()["usage"]
    events = named_events((await server.generate(n=3, stream=True)).text)
    usages = [data["usage"] for _, data in events]
    for name in ("input_tokens", "output_tokens", "total_tokens"):
        assert sum(usage[name] for usage in usages) == whole[name]


async def test_a_failure_within_a_stream_is_an_event(server: ImageServer) -> None:
    server.engine.failure = Failure(after=3, code="over_capacity", message="out of memory")
    events = named_events((await server.generate(stream=True, partial_images=1)).text)
    name, data = events[-1]
    assert name == "" and data["error"]["message"] == "out of memory"


async def test_previews_carry_no_metadata(server: ImageServer) -> None:
    events = named_events((await server.generate(stream=True, partial_images=1)).text)
    assert [("tandem" in opened(data["b64_json"]).info) for _, data in events] == [False, True]


async def test_a_valid_size_of_the_grid_is_always_taken() -> None:
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    server = ImageServer()
    for _ in range(10):
        width = rng.randrange(4, 65) * 8
        height = rng.randrange(4, max(5, 16384 // width // 8 + 1)) * 8
        taken = (await server.generate(size=f"{width}x{height}")).status_code == 200
        assert taken == (width * height <= 16384), f"seed {seed}: {width}x{height}"


@pytest.mark.parametrize("path", [GENERATIONS, EDITS, VARIATIONS])
async def test_a_priority_that_cannot_act_is_refused_before_anything_is_decoded(
    server: ImageServer, path: str
) -> None:
    inputs = {} if path == GENERATIONS else {"image": "data:image/png;base64,AAAA"}
    body = {"prompt": "x", "priority": 1, **inputs}
    error = error_of(await server.post(path, **body), 400)
    assert (error["param"], error["code"]) == ("priority", "unsupported_feature")
    assert "--scheduling-policy priority" in error["message"]
    error = error_of(await server.post(path, **body | {"priority": 2**31}), 400)
    assert error["param"] == "priority"
    assert server.state.admission.num_in_flight() == 0
    assert (await server.generate(priority=0)).status_code == 200
