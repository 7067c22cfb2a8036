"""The image routes over the real image engine with a toy family: both sides mean the same."""

import asyncio
import io
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from engine.contract.draw import GuidanceKind
from engine.diffusion.drawing_factory import DrawingFactory
from engine.diffusion.engine import DiffusionEngine, DiffusionLimits
from server.app import create_app
from server.settings import Settings
from tests.helpers.diffusion.toy_family import ToyFamily
from tests.helpers.server.fake_images import image_info
from tests.helpers.server.fake_server import answer_of, error_of, until
from tests.helpers.server.image_server import (
    EDITS,
    GENERATIONS,
    VARIATIONS,
    data_url,
    mask_png,
    named_events,
    opened,
    png,
)
from tests.helpers.worker.in_process_client import InProcessEngineClient


@asynccontextmanager
async def serving(family: ToyFamily, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    limits = DiffusionLimits(
        max_num_rows=8, max_batch_pixels=1 << 20, max_num_images=32, max_num_queued=64
    )
    facts = family.facts
    info = image_info(
        denoising=facts.denoising,
        default_width=32,
        default_height=32,
        size_multiple=facts.size_multiple,
        min_side=facts.min_side,
        max_pixels=facts.max_pixels,
    )
    engine = InProcessEngineClient(DiffusionEngine(DrawingFactory(family), limits), info)
    app = create_app(Settings(**settings), engine)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client,
    ):
        yield client


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with serving(ToyFamily()) as client:
        yield client


def array(b64: str) -> Any:
    return np.asarray(opened(b64).convert("RGB")).astype(int)


async def test_an_image_is_the_same_alone_and_among_others(client: httpx.AsyncClient) -> None:
    seed = random.randrange(1 << 31)
    rng = random.Random(seed)
    bodies = [
        {
            "prompt": f"prompt {i}",
            "seed": rng.randrange(1 << 40),
            "n": rng.randrange(1, 4),
            "num_inference_steps": rng.randrange(2, 8),
            "guidance_scale": rng.choice([1, 3.5]),
            "size": rng.choice(["32x32", "32x48"]),
        }
        for i in range(8)
    ]
    together = await asyncio.gather(*(client.post(GENERATIONS, json=body) for body in bodies))
    for body, among in zip(bodies, together, strict=True):
        alone = (await client.post(GENERATIONS, json=body)).json()["data"]
        for one, other in zip(alone, among.json()["data"], strict=True):
            difference = np.abs(array(one["b64_json"]) - array(other["b64_json"])).max()
            assert difference <= 1, f"seed {seed}: {body}"


async def test_pixels_outside_the_mask_come_back_unchanged(client: httpx.AsyncClient) -> None:
    for width, height in ((32, 32), (37, 29), (64, 48)):
        files = {"image": png(width, height), "mask": mask_png(width, height)}
        answer = answer_of(await client.post(EDITS, files=files, data={"prompt": "x", "seed": "1"}))
        got = array(answer["data"][0]["b64_json"])
        given = np.asarray(Image.open(io.BytesIO(png(width, height)))).astype(int)
        assert got.shape == given.shape
        assert (got[:, width // 2 :] == given[:, width // 2 :]).all()
        assert (got[:, : width // 2] != given[:, : width // 2]).any()


async def test_every_task_and_its_size(client: httpx.AsyncClient) -> None:
    image = {"image": png(40, 32)}
    for path, fields, size in (
        (EDITS, {"prompt": "make it blue"}, (40, 32)),
        (EDITS, {"prompt": "x", "strength": "0.5"}, (40, 32)),
        (EDITS, {"prompt": "x", "outpaint[left]": "8", "outpaint[bottom]": "3"}, (48, 35)),
        (EDITS, {"prompt": "x", "size": "24x20", "task": "image_to_image"}, (24, 20)),
        (VARIATIONS, {}, (40, 32)),
    ):
        answer = answer_of(await client.post(path, files=image, data=fields))
        assert opened(answer["data"][0]["b64_json"]).size == size, fields
        assert answer["size"] == f"{size[0]}x{size[1]}"
    mask = mask_png(40, 32)
    data = {"prompt": "x", "crop_to_mask": "true", "soft_mask": "true", "feather": "2"}
    answer_of(await client.post(EDITS, files=image | {"mask": mask}, data=data))


async def test_previews_steps_and_seeds(client: httpx.AsyncClient) -> None:
    body = {"prompt": "x", "stream": True, "partial_images": 3, "n": 2, "seed": 4}
    body |= {"num_inference_steps": 8}
    events = named_events((await client.post(GENERATIONS, json=body)).text)
    partials = [d for name, d in events if name == "image_generation.partial_image"]
    assert sorted((p["index"], p["partial_image_index"]) for p in partials) == [
        (index, number) for index in range(2) for number in range(3)
    ]
    assert {(p["partial_image_index"], p["step"]) for p in partials} == {(0, 2), (1, 4), (2, 6)}
    assert {p["num_steps"] for p in partials} == {8}
    ends = {d["index"]: d for name, d in events if name == "image_generation.completed"}
    whole = (
        await client.post(GENERATIONS, json=body | {"stream": False, "partial_images": 0})
    ).json()
    for index, image in enumerate(whole["data"]):
        assert ends[index]["b64_json"] == image["b64_json"]
        assert ends[index]["seed"] == image["seed"] == 4 + index


async def test_metadata_replays_bit_for_bit(client: httpx.AsyncClient) -> None:
    body = {"prompt": "a circle", "negative_prompt": "red", "n": 2, "scheduler": "euler"}
    image = (await client.post(GENERATIONS, json=body)).json()["data"][1]["b64_json"]
    again = await client.post(GENERATIONS, json=json.loads(opened(image).info["tandem"]))
    assert again.json()["data"][0]["b64_json"] == image


async def test_the_largest_seeds(client: httpx.AsyncClient) -> None:
    for seed in (0, 2**53 + 1, 2**63 - 2):
        response = await client.post(GENERATIONS, json={"prompt": "x", "seed": seed, "n": 2})
        assert [image["seed"] for image in response.json()["data"]] == [seed, seed + 1]


async def test_cancelling_saves_steps(client: httpx.AsyncClient) -> None:
    body = {"prompt": "x", "num_inference_steps": 1000, "size": "64x64", "n": 4}
    task = asyncio.create_task(client.post(GENERATIONS, json=body | {"stream": True}))
    state = client._transport.app.state.tandem  # type: ignore[attr-defined]
    await until(lambda: bool(state.image_jobs._live))
    (image_id,) = state.image_jobs._live
    async with asyncio.timeout(20):
        while (await client.get(f"/v1/images/{image_id}")).json()["step"] < 8:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    answer = (await client.delete(f"/v1/images/{image_id}")).json()
    assert answer["status"] == "cancelled" and 8 <= answer["step"] < 4000
    ((_, data),) = named_events((await task).text)
    assert data["error"]["code"] == "request_aborted"
    await client.post(GENERATIONS, json={"prompt": "x"})
    text = (await client.get("/metrics")).text
    (line,) = [row for row in text.splitlines() if row.startswith("tandem_image_cancelled_steps_t")]
    # The engine is ahead of what it has told.
    assert 0 < float(line.split()[-1]) <= 4000 - answer["step"]


async def test_a_negative_prompt_that_cannot_act_is_said_once(client: httpx.AsyncClient) -> None:
    body = {"prompt": "x", "negative_prompt": "y", "guidance_scale": 1, "n": 2}
    (warning,) = (await client.post(GENERATIONS, json=body)).json()["warnings"]
    assert "negative_prompt has no effect" in warning
    async with serving(ToyFamily(guidance=GuidanceKind.NONE)) as other:
        body = {"prompt": "x", "negative_prompt": "y"}
        (warning,) = (await other.post(GENERATIONS, json=body)).json()["warnings"]
        assert "negative_prompt has no effect" in warning


async def test_a_mask_in_json_and_in_a_form_are_the_same(client: httpx.AsyncClient) -> None:
    files = {"image": png(), "mask": mask_png()}
    form = await client.post(EDITS, files=files, data={"prompt": "x", "seed": "9"})
    images = {
        "images": [{"image_url": data_url(png())}],
        "mask": {"image_url": data_url(mask_png())},
    }
    body = await client.post(EDITS, json={"prompt": "x", "seed": 9} | images)
    assert form.json()["data"] == body.json()["data"]


async def test_what_the_server_lets_through_the_engine_takes(client: httpx.AsyncClient) -> None:
    """Odd sizes and masks: either side may refuse, but as the client's fault."""
    seed = random.randrange(1 << 31)
    rng = random.Random(seed)
    statuses = []
    for _ in range(40):
        width, height = rng.randrange(1, 90), rng.randrange(1, 90)
        fields = {
            "prompt": "x",
            "num_inference_steps": str(rng.randrange(1, 4)),
            "strength": str(rng.choice([0.3, 0.7, 1.0])),
            "feather": str(rng.choice([0, 1, 30, 256])),
        }
        files = {"image": png(width, height)}
        if rng.random() < 0.6:
            files["mask"] = mask_png(width, height)
            fields["crop_to_mask"] = rng.choice(["true", "false"])
            fields["crop_padding"] = str(rng.choice([0, 5, 500]))
        if rng.random() < 0.5:
            fields |= {f"outpaint[{side}]": str(rng.randrange(0, 40)) for side in ("left", "top")}
        response = await client.post(EDITS, files=files, data=fields)
        statuses.append(response.status_code)
        assert response.status_code in (200, 400), f"seed {seed}: {fields} {response.text}"
        if response.status_code == 400:
            error_of(response)
    assert statuses.count(200) > 10, f"seed {seed}: {statuses}"
