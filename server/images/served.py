"""The image kind: what the server knows of models that draw images, besides their routes."""

from collections.abc import Sequence
from typing import Any

from engine.contract.draw import ImageModelInfo
from engine.contract.operations import DRAW
from engine.contract.settings import EngineConfig
from server.http.admission import Places
from server.http.schemas import variant
from server.http.served_operation import FirstQuestion, ServedOperation, card_of, parent_of
from server.images.metrics import ImageMetrics
from server.protocol.images import (
    ImageEditRequest,
    ImageGenerationRequest,
    ImageVariationRequest,
)
from server.protocol.models import ImageModelCard
from server.settings import Settings


def image_places(settings: Settings, config: EngineConfig) -> Places:
    """The places at a model of any kind whose requests are for images."""
    return Places(
        what="images",
        num_running=config.replicas * config.max_num_images,
        num_waiting=settings.max_queued_images,
    )


def _fill_in(properties: dict[str, Any], infos: Sequence[ImageModelInfo]) -> None:
    offered = [info.denoising.schedulers for info in infos if info.denoising is not None]
    names = {name: None for schedulers in offered for name in schedulers}
    if names:
        variant(properties["scheduler"], "string")["enum"] = [*names, ""]


def _card(info: ImageModelInfo) -> ImageModelCard:
    denoising: dict[str, Any] = {}
    if info.denoising is not None:
        denoising = {
            "guidance": info.denoising.guidance,
            "schedulers": list(info.denoising.schedulers),
            "default_scheduler": info.denoising.default_scheduler,
            "default_steps": info.denoising.default_steps,
            "default_guidance_scale": info.denoising.default_guidance_scale,
            "default_edit_guidance_scale": info.denoising.default_edit_guidance_scale,
        }
    return card_of(
        ImageModelCard,
        info,
        parent=parent_of(info),
        tasks=list(info.tasks),
        max_edit_images=1 if info.references is None else info.references.max_images,
        default_size=f"{info.default_width}x{info.default_height}",
        **denoising,
    )


def _first_question(model: str) -> FirstQuestion:
    prompt = "a large red circle left of a small blue star"
    return FirstQuestion(words=("draw", prompt, "-o", "image.png"))


SERVED_IMAGES = ServedOperation(
    operation=DRAW,
    deed="draws images",
    routes="/v1/images/generations or /v1/images/edits",
    routers=("server.routes.images:router", "server.routes.images:form_router"),
    nothing_served="no image model is served here; start the server with one, such as "
    "--model HUB_ID_OR_FOLDER",
    bodies=(ImageGenerationRequest, ImageEditRequest, ImageVariationRequest),
    places=image_places,
    fill_in=_fill_in,
    card=_card,
    metrics=ImageMetrics,
    first_question=_first_question,
)
