"""Image models that do other things than denoise."""

from dataclasses import replace
from typing import Any

import pytest

from engine.contract.draw import ImageTask
from engine.diffusion.engine import DiffusionEngine, DiffusionLimits
from engine.worker.messages import Ready, decode_from_worker, encode
from server.app import create_app
from server.images.served import SERVED_IMAGES
from server.settings import Settings
from tests.helpers.diffusion.doubling import DOUBLE, DoublingSource
from tests.helpers.diffusion.toy_family import picture, request
from tests.helpers.server.fake_images import image_info
from tests.helpers.server.fake_server import error_of
from tests.helpers.server.image_server import (
    EDITS,
    GENERATIONS,
    VARIATIONS,
    ImageServer,
    data_url,
    png,
)
from tests.helpers.worker.in_process_client import InProcessEngineClient

INFO = image_info("doubler", tasks=(), denoising=None)
DENOISED_BY = (
    "guidance",
    "schedulers",
    "default_scheduler",
    "default_steps",
    "default_guidance_scale",
    "default_edit_guidance_scale",
)


async def test_its_card_has_nothing_to_denoise_by() -> None:
    server = ImageServer(INFO, image_info("painter"))
    models = (await server.client.get("/v1/models")).json()["data"]
    cards = {card["id"]: card for card in models}
    assert {cards["doubler"][name] for name in DENOISED_BY} == {None}
    assert cards["doubler"].keys() == cards["painter"].keys()
    assert cards["painter"]["default_scheduler"] == cards["painter"]["schedulers"][0] == "ddim"


async def test_the_document_offers_the_schedulers_of_those_that_denoise() -> None:
    def scheduler(document: Any) -> Any:
        fields = document["components"]["schemas"]["ImageGenerationRequest"]["properties"]
        return fields["scheduler"]["anyOf"][0]

    alone = ImageServer(INFO)
    assert "enum" not in scheduler((await alone.client.get("/openapi.json")).json())
    both = ImageServer(INFO, image_info("painter"))
    document = (await both.client.get("/openapi.json")).json()
    assert scheduler(document)["enum"] == ["ddim", "euler", "dpmpp_2m", ""]


@pytest.mark.parametrize("tasks", [(), tuple(ImageTask)])
@pytest.mark.parametrize("path", [GENERATIONS, EDITS, VARIATIONS])
async def test_it_cannot_be_asked_to_draw(path: str, tasks: tuple[ImageTask, ...]) -> None:
    server = ImageServer(image_info("doubler", tasks=tasks, denoising=None))
    body: dict[str, Any] = {"prompt": "x"}
    if path != GENERATIONS:
        body["image"] = data_url(png())
    error = error_of(await server.post(path, **body), 400)
    assert error["code"] == "unsupported_feature"
    assert "doubler does not support " in error["message"]
    assert not server.engine.requests


async def test_it_serves_behind_the_client_and_its_time_is_measured() -> None:
    limits = DiffusionLimits(
        max_num_rows=4, max_batch_pixels=1 << 20, max_num_images=4, max_num_queued=4
    )
    engine = InProcessEngineClient(DiffusionEngine(DoublingSource(), limits), INFO)
    app = create_app(Settings(), engine)
    async with app.router.lifespan_context(app):
        image = picture(32, 32)
        asked = replace(request("d", DOUBLE, image=image, num_inference_steps=3), model="doubler")
        events = [event async for event in engine.submit(asked)]
        meter = app.state.tandem.metrics.of(SERVED_IMAGES).meter("doubler")
        for event in events:
            meter.on_event(event)
    doubled = events[-1].image
    assert doubled is not None
    assert (doubled.width, doubled.height) == (64, 64)
    assert doubled.data[:3] == doubled.data[3:6] == image.data[:3]
    registry = app.state.tandem.metrics.registry
    for phase, num in (("double", 1), ("decode", 1), ("denoise", 0)):
        labels = {"model_name": "doubler", "phase": phase}
        assert registry.get_sample_value("tandem_image_phase_seconds_count", labels) == num, phase


def test_its_info_crosses_to_the_server() -> None:
    for info in (INFO, image_info("painter")):
        message = decode_from_worker(encode(Ready.of(info)))
        assert isinstance(message, Ready) and message.read() == info
