"""Adapters of image requests: by field, by tag, by model, and swept."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from engine.contract.draw import ImageModelInfo, LoraUse
from tests.helpers.server.fake_images import image_info, picture
from tests.helpers.server.fake_server import answer_of, error_of, until
from tests.helpers.server.image_server import EDITS, VARIATIONS, ImageServer, opened, png

NAMES = ("ink", "neon", "old: style")


def info(**changes: Any) -> ImageModelInfo:
    failed = {"broken": "it is cut off"}
    return image_info(**{"adapters": NAMES, "failed_adapters": failed, **changes})


@pytest.fixture
async def server() -> ImageServer:
    return ImageServer(info())


def asked(server: ImageServer) -> list[dict[str, float]]:
    return [{use.name: use.scale for use in setting} for setting in server.last.loras]


async def test_none_are_none(server: ImageServer) -> None:
    for loras in ({}, {"loras": None}, {"loras": []}):
        assert (await server.generate(**loras)).status_code == 200
        assert server.last.loras == []


async def test_they_reach_the_engine_by_name_and_scale(server: ImageServer) -> None:
    body = [{"name": "ink"}, {"name": "neon", "scale": -0.5}, {"name": NAMES[2], "scale": None}]
    answer = (await server.generate(loras=body, n=2)).json()
    assert asked(server) == [{"ink": 1.0, "neon": -0.5, NAMES[2]: 1.0}]
    assert (server.last.params.n, len(answer["data"])) == (2, 2)
    assert server.last.adapter_names == ("ink", "neon", NAMES[2])


async def test_a_sweep_draws_each_scale_with_the_same_seeds(server: ImageServer) -> None:
    body = [{"name": "ink", "scale": [0, 0.5, 1]}, {"name": "neon", "scale": 0.25}]
    answer = (await server.generate(loras=body, n=2, seed=9)).json()
    assert asked(server) == [{"ink": scale, "neon": 0.25} for scale in (0, 0.5, 1)]
    assert server.last.params.n == 6
    assert [image["seed"] for image in answer["data"]] == [9, 10] * 3
    for index, image in enumerate(answer["data"]):
        wanted = picture(server.last, index)
        assert opened(image["b64_json"]).tobytes() == wanted.data
    both = [{"name": "ink", "scale": [0, 1]}, {"name": "neon", "scale": [1, 0]}]
    assert (await server.generate(loras=both)).status_code == 200
    assert asked(server) == [{"ink": 0, "neon": 1}, {"ink": 1, "neon": 0}]


async def test_adapters_count_what_is_drawn_with_them(server: ImageServer) -> None:
    def value(name: str, adapter: str) -> float | None:
        metrics = server.state.metrics
        labels = {"model_name": "painter", "lora_name": adapter}
        found: float | None = metrics.registry.get_sample_value(name, labels)
        return found

    sweep = [{"name": "ink", "scale": [0, 0.5, 1]}, {"name": "neon"}]
    assert (await server.generate(loras=sweep, n=2)).status_code == 200
    assert (await server.generate(model="ink")).status_code == 200
    assert (await server.generate()).status_code == 200
    assert value("tandem_image_lora_requests_total", "ink") == 2
    assert value("tandem_image_lora_images_total", "ink") == 5, "scale 0 has no effect"
    assert value("tandem_image_lora_requests_total", "neon") == 1
    assert value("tandem_image_lora_images_total", "neon") == 6
    server.state.metrics.forget("painter", "ink")
    assert value("tandem_image_lora_images_total", "ink") is None
    assert value("tandem_image_lora_images_total", "neon") == 6


async def test_files_say_with_what_they_were_drawn(server: ImageServer) -> None:
    body = [{"name": "ink", "scale": [0.25, 1]}, {"name": "neon"}]
    answer = (await server.generate(loras=body, seed=3)).json()
    for scale, image in zip((0.25, 1.0), answer["data"], strict=True):
        chunks: Any = opened(image["b64_json"])
        fields = json.loads(chunks.text["tandem"])
        loras = [{"name": "ink", "scale": scale}, {"name": "neon", "scale": 1.0}]
        assert fields["loras"] == loras
        first = f"a red circle <lora:ink:{scale:g}> <lora:neon:1>\n"
        assert chunks.text["parameters"].startswith(first)
        again = (await server.post("/v1/images/generations", **fields)).json()
        assert opened(again["data"][0]["b64_json"]).tobytes() == chunks.tobytes()


async def test_an_adapter_is_asked_for_as_a_model(server: ImageServer) -> None:
    assert (await server.generate(model="ink")).status_code == 200
    assert (server.last.model, asked(server)) == ("painter", [{"ink": 1.0}])
    await server.generate(model="ink", loras=[{"name": "ink", "scale": 0.5}, {"name": "neon"}])
    assert asked(server) == [{"ink": 0.5, "neon": 1.0}]
    cards = (await server.client.get("/v1/models")).json()["data"]
    assert {card["id"]: card["parent"] for card in cards} == {
        "painter": None,
        **dict.fromkeys(NAMES, "painter"),
    }
    assert cards[1]["default_size"] == cards[0]["default_size"]


async def test_tags_in_the_syntax_that_has_them(server: ImageServer) -> None:
    prompt = "a (red:1.2) circle <lora:ink:0.5>, <lyco:neon> round"
    body = {"prompt": prompt, "prompt_syntax": "a1111", "loras": [{"name": NAMES[2], "scale": 2}]}
    assert (await server.generate(**body)).status_code == 200
    assert server.last.prompt == "a (red:1.2) circle ,  round"
    assert asked(server) == [{"ink": 0.5, "neon": 1.0, NAMES[2]: 2.0}]
    assert (await server.generate(prompt=prompt)).status_code == 200
    assert (server.last.prompt, server.last.loras) == (prompt, []), "elsewhere it is text"


@pytest.mark.parametrize(
    ("tag", "words", "param", "status"),
    [
        ("<lora:ink:much>", "is not a number", "prompt", 400),
        ("<lora:ink:nan>", "is not a number", "prompt", 400),
        ("<lora:ink:11>", "is too large", "prompt", 400),
        ("<lora:ink:1:0.5>", "a single scale", "prompt", 400),
        ("<lora:ink:te=0.5>", "a single scale", "prompt", 400),
        ("<lora:ink:1> <lora:ink:1>", "twice", "prompt", 400),
        ("<lora:nobody:1>", "has no adapter 'nobody'; it has ink, neon", "prompt", 404),
        ("<lora:neon:1>", "both in the prompt and in loras", "loras", 400),
    ],
)
async def test_tags_that_mean_nothing(
    server: ImageServer, tag: str, words: str, param: str, status: int
) -> None:
    body = {"prompt": f"a fox {tag}", "prompt_syntax": "a1111", "loras": [{"name": "neon"}]}
    error = error_of(await server.generate(**body), status)
    assert words in error["message"]
    assert error["param"] == param


REFUSED: list[tuple[Any, str, int]] = [
    ([{"name": "nobody"}], "has no adapter 'nobody'", 404),
    ([{"name": "broken"}], "not served: it is cut off", 404),
    ([{"name": "ink"}, {"name": "ink"}], "twice", 400),
    ([{"name": "ink", "weight": 1}], "only name and scale", 400),
    ([{"scale": 1}], "required", 400),
    ([{"name": ""}], "1 character", 400),
    ([{"name": "x" * 257}], "256", 400),
    ([{"name": "ink", "scale": 10.5}], "10", 400),
    ([{"name": "ink", "scale": "1"}], "number", 400),
    ([{"name": "ink", "scale": []}], "1 item", 400),
    ([{"name": "ink", "scale": [1] * 11}], "10", 400),
    ([{"name": "ink", "scale": [0, 1]}, {"name": "neon", "scale": [0, 1, 2]}], "2 and 3", 400),
    ([{"name": str(n)} for n in range(9)], "8", 400),
    (["ink"], "object", 400),
    ("ink", "array", 400),
    ({"name": "ink"}, "array", 400),
]


@pytest.mark.parametrize(("loras", "words", "status"), REFUSED)
async def test_refusals_name_the_limit(
    server: ImageServer, loras: Any, words: str, status: int
) -> None:
    error = error_of(await server.generate(loras=loras), status)
    assert words.lower() in error["message"].lower().replace("valid list", "array").replace(
        "valid dictionary", "object"
    )
    assert error["param"].startswith("loras")
    assert server.engine.requests == []


async def test_sweeps_count_as_so_many_images(server: ImageServer) -> None:
    sweep = [{"name": "ink", "scale": [0, 0.5, 1]}]
    error = error_of(await server.generate(loras=sweep, n=4))
    assert "makes 12 images; the limit is 10" in error["message"]
    small = ImageServer(info(), max_image_megapixel_steps=0.04)
    assert (await small.generate(n=2)).status_code == 200
    assert "3 images" in error_of(await small.generate(loras=sweep))["message"]
    busy = ImageServer(info(), engine={"max_num_images": 2}, max_queued_images=1)
    busy.engine.hold()
    running = asyncio.create_task(busy.generate(loras=sweep))
    await until(lambda: bool(busy.engine.requests))
    assert (await busy.generate()).status_code == 429
    busy.engine.release()
    assert (await running).status_code == 200


async def test_a_model_without_any() -> None:
    server = ImageServer(image_info())
    error = error_of(await server.generate(loras=[{"name": "ink"}]), 404)
    assert (error["code"], "it has none" in error["message"]) == ("adapter_not_found", True)
    assert error_of(await server.generate(model="ink"), 404)["param"] == "model"


async def test_forms_hold_json(server: ImageServer) -> None:
    loras = json.dumps([{"name": "ink", "scale": [0, 1]}])
    assert (await server.edit(loras=loras, strength="0.5")).status_code == 200
    assert asked(server) == [{"ink": 0}, {"ink": 1}]
    assert (await server.vary(loras=json.dumps([{"name": "neon"}]))).status_code == 200
    assert asked(server) == [{"neon": 1.0}]
    for text in ("ink", "{}", "[" * 5000, '{"name": "ink"}'):
        assert error_of(await server.edit(loras=text))["param"] == "loras"
    files = [("image", ("a.png", png(), "image/png"))]
    parts: Any = {"prompt": "x", "loras[][name]": ["ink", "neon"], "loras[][scale]": ["0.5", "2"]}
    for path in (EDITS, VARIATIONS):
        answer_of(await server.client.post(path, files=files, data=parts))
        assert asked(server) == [{"ink": 0.5, "neon": 2.0}]
    for scales in (["1"], ["1", "x"], ["nan", "1"]):
        response = await server.client.post(
            EDITS, files=files, data={**parts, "loras[][scale]": scales}
        )
        assert error_of(response)["param"].startswith("loras")


async def test_the_official_client(server: ImageServer, client: AsyncOpenAI) -> None:
    loras: Any = [{"name": "ink", "scale": [0.0, 1.0]}]
    answer = await client.images.generate(
        model="painter", prompt="a fox", extra_body={"loras": loras}
    )
    assert answer.data is not None and len(answer.data) == 2
    assert asked(server) == [{"ink": 0.0}, {"ink": 1.0}]
    await client.images.generate(model="neon", prompt="a fox")
    assert asked(server) == [{"neon": 1.0}]
    plain: Any = [{"name": "ink", "scale": 0.5}, {"name": "neon", "scale": 1.5}]
    await client.images.edit(
        image=png(), prompt="ink", extra_body={"loras": plain, "strength": 0.5}
    )
    assert asked(server) == [{"ink": 0.5, "neon": 1.5}]
    with pytest.raises(openai.NotFoundError):
        await client.images.generate(prompt="a fox", extra_body={"loras": [{"name": "nobody"}]})


async def test_an_adapter_that_goes_while_requests_wait(server: ImageServer) -> None:
    server.engine.hold()
    waiting = asyncio.create_task(server.generate(loras=[{"name": "ink"}]))
    await until(lambda: bool(server.engine.requests))
    served = server.engine.served["painter"]
    server.engine.served["painter"] = served.without_adapter("ink")
    error_of(await server.generate(loras=[{"name": "ink"}]), 404)
    server.engine.release()
    assert (await waiting).status_code == 200


def test_uses_are_plain_data() -> None:
    use = LoraUse(name="ink")
    assert replace(use, scale=1.0) == use
    assert len({use, LoraUse(name="ink", scale=1.0)}) == 1
