"""A1111's routes, `/sdapi/v1/...`, except those that only list things (`listings.py`)."""

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Request, Response

from engine.contract.kinds import kind_for
from engine.contract.operations import DRAW
from engine.errors import UnsupportedFeature
from server.dependencies import ClientDep, StateDep
from server.dialects.a1111 import listings
from server.dialects.a1111.convert import (
    drawing_body,
    model_of,
    redrawing_body,
    upscaling_body,
)
from server.dialects.a1111.protocol import (
    ExtraSingleImageRequest,
    Img2ImgRequest,
    OptionsRequest,
    PngInfoRequest,
    Txt2ImgRequest,
)
from server.dialects.a1111.shape import (
    A1111Shape,
    EnlargedShape,
    answers,
    error_shape,
    read_texts,
)
from server.dialects.a1111.titles import title_of
from server.dialects.dialect import Dialect
from server.http.json_route import JsonRoute
from server.http.owner import owner_of
from server.http.sse import until_disconnect
from server.operations.draw import answer_images
from server.operations.enlarge import answer_upscaling
from server.state import AppState

router = APIRouter(route_class=JsonRoute, tags=["A1111"])
bare_router = APIRouter(tags=["A1111"])
"""Router of requests without a body."""

_IMAGES = answers({"images": ["..."], "parameters": {}, "info": "{}"})


@router.post("/sdapi/v1/txt2img", summary="Draw images", responses=_IMAGES)
async def txt2img(body: Txt2ImgRequest, client: ClientDep) -> Response:
    """Draws images from a prompt."""
    openai = drawing_body(body, await client.find(DRAW, model_of(body)))
    client = client.with_sent(body, A1111Shape(body))
    return await answer_images(openai, client, "image_generation")


@router.post("/sdapi/v1/img2img", summary="Redraw an image", responses=_IMAGES)
async def img2img(body: Img2ImgRequest, client: ClientDep) -> Response:
    """Redraws a whole image, or the part that a mask marks."""
    openai = redrawing_body(body, await client.find(DRAW, model_of(body)))
    client = client.with_sent(body, A1111Shape(body))
    body.init_images, body.mask = [], None
    return await answer_images(openai, client, "image_edit")


@router.post(
    "/sdapi/v1/extra-single-image",
    summary="Enlarge an image",
    responses=answers({"html_info": "", "image": "..."}),
)
async def extra_single_image(body: ExtraSingleImageRequest, client: ClientDep) -> Response:
    """Enlarges an image with the named upscaler; faces are not restored."""
    openai = upscaling_body(body)
    body.image = ""
    return await answer_upscaling(openai, client.with_sent(body, EnlargedShape()))


@router.post(
    "/sdapi/v1/png-info",
    summary="Read how an image was made",
    responses=answers({"info": "...", "items": {}, "parameters": {}, "warnings": []}),
)
async def png_info(body: PngInfoRequest, request: Request, state: StateDep) -> dict[str, Any]:
    """Returns what this server, or A1111, has written into an image's file. `warnings` say if the
    model or an adapter with that name has other files here."""
    max_pixels = state.settings.max_image_input_pixels
    read = state.pictures.texts(body.image, "image", max_pixels=max_pixels)
    found = await until_disconnect(request.receive, read)
    return await asyncio.to_thread(read_texts, found.texts, state.engine.infos(DRAW))


@router.get("/sdapi/v1/progress", summary="Progress", responses=answers({"progress": 0.5}))
async def progress(state: StateDep) -> dict[str, Any]:
    """Returns the progress of the oldest unfinished request of any client; `GET /v1/images/{id}`
    returns that of any request."""
    job = next(iter(state.image_jobs.live()), None)
    done = job.progress if job else 0.0
    elapsed_s = time.time() - job.created if job else 0.0
    return {
        "progress": done,
        "eta_relative": elapsed_s / done - elapsed_s if done else 0.0,
        "state": {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": job.status if job else "",
            "job_count": job.n if job else 0,
            "job_timestamp": time.strftime(
                "%Y%m%d%H%M%S", time.localtime(job.created if job else 0)
            ),
            "job_no": job.num_finished if job else 0,
            "sampling_step": job.step if job else 0,
            "sampling_steps": job.num_steps if job else 0,
        },
        "current_image": None,
        "textinfo": None,
    }


@bare_router.post("/sdapi/v1/interrupt", summary="Cancel a request", responses=answers({}))
async def interrupt(request: Request, state: StateDep) -> dict[str, Any]:
    """Cancels the oldest unfinished image request of the asking key. Its client gets a failure, not
    the unfinished image; `DELETE /v1/requests/{id}` cancels any request."""
    found = state.live_requests.of(owner_of(request))
    oldest = next((run for label, run in found if label.kind == kind_for(DRAW).name), None)
    if oldest is not None:
        await oldest.cancel()
    return {}


@router.get("/sdapi/v1/options", summary="Settings", responses=answers({"samples_format": "png"}))
async def get_options(state: StateDep) -> dict[str, Any]:
    """Returns the values for requests that do not set their own."""
    return _options(state)


@router.post("/sdapi/v1/options", summary="Change settings", responses=answers(None))
async def set_options(body: OptionsRequest, state: StateDep) -> None:
    """Accepts only the current values: one client's settings would apply to all others."""
    settings = _options(state)
    for name, value in (body.model_extra or {}).items():
        if name not in settings or value != settings[name]:
            raise UnsupportedFeature(
                "settings cannot be changed for all clients; send override_settings with a "
                "request instead",
                param="options",
            )


def _options(state: AppState) -> dict[str, Any]:
    infos = state.engine.infos(DRAW)
    return {
        "sd_model_checkpoint": title_of(infos[0]) if infos else "",
        "samples_format": "png",
        "CLIP_stop_at_last_layers": 1,
    }


router.include_router(bare_router)
router.include_router(listings.router)

A1111 = Dialect(router=router, failures=("/sdapi/", error_shape), bodies={})
