"""The official client against the image routes."""

import base64
import io

import openai
import pytest
from openai import AsyncOpenAI
from PIL import Image

from engine.contract.draw import ImageTask, Outpaint
from tests.helpers.server.fake_engine import Failure
from tests.helpers.server.fake_server import until
from tests.helpers.server.image_server import ImageServer, mask_png, png


def size_of(b64: str | None) -> tuple[int, int]:
    assert b64 is not None
    return Image.open(io.BytesIO(base64.b64decode(b64))).size


async def test_generate(server: ImageServer, client: AsyncOpenAI) -> None:
    answer = await client.images.generate(
        prompt="a red circle",
        model="painter",
        n=2,
        size="96x64",
        quality="low",
        output_format="jpeg",
        output_compression=80,
        moderation="low",
        user="u",
        extra_body={"seed": 5, "negative_prompt": "blurry"},
    )
    assert answer.data is not None and answer.usage is not None
    assert [size_of(image.b64_json) for image in answer.data] == [(96, 64)] * 2
    assert (answer.size, answer.quality, answer.output_format) == ("96x64", "low", "jpeg")
    assert answer.background == "opaque"
    assert answer.usage.total_tokens == 3 + 2 * 96
    assert (server.last.params.seed, server.last.params.negative_prompt) == (5, "blurry")
    links = await client.images.generate(prompt="x", response_format="url")
    assert links.data is not None and "/v1/images/files/" in str(links.data[0].url)


async def test_generate_in_a_stream(client: AsyncOpenAI) -> None:
    stream = await client.images.generate(prompt="x", stream=True, partial_images=2)
    events = [event async for event in stream]
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    indices = [e.partial_image_index for e in events if e.type == "image_generation.partial_image"]
    assert indices == [0, 1]
    last = events[-1]
    assert last.type == "image_generation.completed"
    assert last.usage.output_tokens == 64 and size_of(last.b64_json) == (64, 64)


async def test_edit(server: ImageServer, client: AsyncOpenAI) -> None:
    answer = await client.images.edit(
        image=("a.png", png()),
        mask=("m.png", mask_png()),
        prompt="a cat",
        n=2,
        size="auto",
        extra_body={"outpaint": {"left": 8, "top": 16}, "soft_mask": True, "seed": 3},
    )
    assert answer.data is not None
    assert [size_of(image.b64_json) for image in answer.data] == [(72, 64)] * 2
    params = server.last.params
    assert (params.task, params.seed, params.soft_mask) == (ImageTask.INPAINT, 3, True)
    assert params.outpaint == Outpaint(left=8, top=16)


async def test_edit_with_a_list_in_a_stream(server: ImageServer, client: AsyncOpenAI) -> None:
    stream = await client.images.edit(
        image=[io.BytesIO(png())], prompt="make it blue", stream=True, partial_images=1
    )
    events = [event async for event in stream]
    assert [event.type for event in events] == [
        "image_edit.partial_image",
        "image_edit.completed",
    ]
    assert server.last.params.task is ImageTask.EDIT


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
async def test_variation(server: ImageServer, client: AsyncOpenAI) -> None:
    answer = await client.images.create_variation(image=png(), n=2)
    assert answer.data is not None and len(answer.data) == 2
    assert server.last.params.task is ImageTask.IMAGE_TO_IMAGE


async def test_errors_are_the_clients_types(server: ImageServer, client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.images.generate(prompt="x", size="63x63")
    assert caught.value.param == "size"
    with pytest.raises(openai.NotFoundError, match="not served"):
        await client.images.edit(image=png(), prompt="x", model="dall-e-2")
    server.engine.failure = Failure(after=2, code="over_capacity", message="out of memory")
    stream = await client.images.generate(prompt="x", stream=True)
    with pytest.raises(openai.APIError, match="out of memory"):
        async for _ in stream:
            pass


async def test_closing_a_stream_cancels(server: ImageServer, client: AsyncOpenAI) -> None:
    server.engine.step_s = 0.01
    stream = await client.images.generate(
        prompt="x", stream=True, partial_images=3, extra_body={"num_inference_steps": 400}
    )
    async for _ in stream:
        break
    await stream.close()
    await until(lambda: server.engine.aborted == [server.last.request_id])
