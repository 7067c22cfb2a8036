"""`POST /v1/images/upscale` by models that draw, with a real engine over the toy family."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest

from engine.contract.draw import ImageModelInfo, ImageTask, UpscalingFacts
from engine.diffusion.drawing_factory import DrawingFactory
from engine.diffusion.engine import DiffusionEngine, DiffusionLimits
from server.app import create_app
from server.settings import Settings
from tests.helpers.diffusion.toy_family import FACTOR, ToyFamily
from tests.helpers.server.fake_images import image_info
from tests.helpers.server.fake_server import assert_refused, error_of
from tests.helpers.server.image_server import named_events, opened, png
from tests.helpers.server.upscaling_server import UPSCALE_PATH
from tests.helpers.worker.in_process_client import InProcessEngineClient

UPSCALER = image_info(
    "upscaler",
    tasks=(ImageTask.UPSCALE,),
    size_multiple=FACTOR,
    max_pixels=1 << 18,
    upscaling=UpscalingFacts(scale=FACTOR, default_noise_level=1, max_noise_level=3),
)
RESTORER = image_info(
    "restorer",
    tasks=(ImageTask.TEXT_TO_IMAGE, ImageTask.IMAGE_TO_IMAGE, ImageTask.RESTORE),
    size_multiple=FACTOR,
    max_restored_pixels=32 * 32 * 32,
)
PAINTER = image_info("painter", tasks=(ImageTask.TEXT_TO_IMAGE,))


class Client:
    """Attributes: `requests` are those that reached the engine."""

    def __init__(self, client: httpx.AsyncClient, model: str) -> None:
        self._client, self._model = client, model
        self.requests: list[Any] = []

    async def send(self, file: bytes | None = None, **fields: str) -> httpx.Response:
        files = {"image": ("a.png", png() if file is None else file, "image/png")}
        data = {"model": self._model, "num_inference_steps": "3", **fields}
        return await self._client.post(UPSCALE_PATH, files=files, data=data)


@contextlib.asynccontextmanager
async def serving(info: ImageModelInfo) -> AsyncIterator[Client]:
    limits = DiffusionLimits(
        max_num_rows=16, max_batch_pixels=1 << 20, max_num_images=4, max_num_queued=4
    )
    engine = InProcessEngineClient(DiffusionEngine(DrawingFactory(ToyFamily()), limits), info)
    app = create_app(Settings(load_on_first_use=False), engine)
    submit = engine.submit
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            client = Client(http, info.model)

            def spy(request: Any) -> Any:
                client.requests.append(request)
                return submit(request)

            engine.submit = spy  # type: ignore[method-assign]
            yield client


def pixels_of(b64: str) -> Any:
    return np.asarray(opened(b64))


async def test_an_upscaler_draws_at_its_scale() -> None:
    async with serving(UPSCALER) as client:
        response = await client.send(prompt="a door", seed="5")
        assert response.status_code == 200, response.text
        answer = response.json()
        params = client.requests[0].params
        assert params.task is ImageTask.UPSCALE
        assert (params.width, params.height, params.noise_level) == (256, 192, 1)
        assert pixels_of(answer["data"][0]["b64_json"]).shape == (192, 256, 3)
        facts = ("model", "size", "scale", "seed", "num_tiles", "id")
        assert [answer[name] for name in facts] == [
            "upscaler",
            "256x192",
            4.0,
            5,
            3,
            response.headers["x-image-id"],
        ]
        assert 0 < answer["consistency"]["psnr_db"] < 99
        again = (await client.send(prompt="a door", seed="5")).json()
        assert again["data"] == answer["data"]
        other = (await client.send(prompt="a door", seed="5", denoise="1")).json()
        assert client.requests[2].params.noise_level == 3
        assert other["data"] != answer["data"]


async def test_a_smaller_scale_and_alpha() -> None:
    async with serving(UPSCALER) as client:
        answer = (await client.send(png(mode="RGBA"), scale="1.5")).json()
        assert answer["size"] == "96x72"
        assert pixels_of(answer["data"][0]["b64_json"]).shape == (72, 96, 4)
        assert client.requests[0].params.guidance_scale == 1.0, "two empty prompts are one"


async def test_a_model_that_redraws_in_tiles() -> None:
    async with serving(RESTORER) as client:
        response = await client.send(
            prompt="x",
            fidelity="1",
            heat_map="true",
            stream="true",
            partial_images="2",
            denoise="1",
        )
        events = named_events(response.text)
        names = [name for name, _ in events]
        assert names.count("image_upscale.partial_image") == 2
        assert names[-1] == "image_upscale.completed"
        progress = [data["progress"] for name, data in events if name == "image_upscale.progress"]
        assert progress == sorted(progress) and progress[-1] == 1.0
        answer = events[-1][1]
        assert answer["size"] == "128x96"
        assert pixels_of(answer["b64_json"]).shape == (96, 128, 3)
        assert opened(answer["heat_map"]).size == (64, 48)
        params = client.requests[0].params
        assert (params.task, params.strength) == (ImageTask.RESTORE, 1.0)
        plain = (await client.send(prompt="x", denoise="1", seed=str(answer["seed"]))).json()
        assert plain["consistency"]["psnr_db"] < answer["consistency"]["psnr_db"]


async def test_without_a_step_the_image_is_only_enlarged() -> None:
    async with serving(RESTORER) as client:
        answer = (await client.send(prompt="x", denoise="0", seed="1")).json()
        assert client.requests[0].params.strength == 0
        assert answer["warnings"] == ["prompt has no effect: denoise 0 only enlarges"]
        other = (await client.send(denoise="0", seed="2")).json()
        assert other["data"] == answer["data"] and other["warnings"] == []
    async with serving(UPSCALER) as client:
        assert (await client.send(denoise="0")).status_code == 200
        assert client.requests[0].params.noise_level == 0


@pytest.mark.parametrize(
    ("info", "fields", "param"),
    [
        (UPSCALER, {"scale": "5"}, "scale"),
        (UPSCALER, {"tile": "64"}, "tile"),
        (UPSCALER, {"exact": "true"}, "exact"),
        (UPSCALER, {"scheduler": "none such"}, "scheduler"),
        (UPSCALER, {"denoise": "1.5"}, "denoise"),
        (UPSCALER, {"seed": "-1"}, "seed"),
        (RESTORER, {"scale": "4"}, "image"),
        (RESTORER, {"denoise": "0.1"}, "denoise"),
        (RESTORER, {"num_inference_steps": "0"}, "num_inference_steps"),
        (PAINTER, {}, "model"),
    ],
)
async def test_what_is_refused(info: ImageModelInfo, fields: dict[str, str], param: str) -> None:
    async with serving(info) as client:
        error = error_of(await client.send(**fields))
        assert error["param"] == param
        assert not client.requests


async def test_an_image_that_is_too_large() -> None:
    async with serving(UPSCALER) as client:
        assert_refused(await client.send(png(256, 256)), "image", "1048576 pixels")
