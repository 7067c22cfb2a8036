"""Models that enlarge images, as the server knows them beside their routes."""

import shlex
from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry

from engine.client import EngineClient
from engine.config import EngineConfig
from engine.kinds import UPSCALE
from engine.upscale_types import UpscaleModelInfo
from server.http.admission import Places
from server.http.item_metrics import ItemMetrics, ItemNames
from server.http.schemas import variant
from server.http.served_kind import FirstQuestion, ServedKind
from server.protocol.upscaling import UpscaleImageRequest, UpscaleModelCard
from server.settings import Settings

_METRICS = ItemNames(
    subsystem="upscale",
    items="images",
    totals={
        "num_tiles": "Tiles of all images.",
        "output_megapixels": "Megapixels of the results.",
    },
    step_sizes={"step_tiles": "Tiles of a step."},
    step_time="step_time_s",
)
_PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
"""The smallest PNG file there is, as a line for the shell has no other to send."""


def _places(settings: Settings, config: EngineConfig) -> Places:
    return Places(
        what="images",
        num_running=config.max_num_images,
        num_waiting=settings.max_queued_images,
    )


def _fill_in(properties: dict[str, Any], infos: Sequence[UpscaleModelInfo]) -> None:
    if infos:
        variant(properties["scale"], "number")["maximum"] = max(info.scale for info in infos)
        variant(properties["tile"], "integer")["maximum"] = max(info.max_tile for info in infos)


def _card(info: UpscaleModelInfo) -> UpscaleModelCard:
    radius = info.receptive_radius
    return UpscaleModelCard(
        id=info.model,
        created=info.created,
        root=info.model,
        architecture=info.architecture,
        scale=info.scale,
        default_tile=info.default_tile,
        default_overlap=info.default_overlap,
        exact_by_default=info.exact_by_default,
        exact_overlap=None if radius is None else 2 * radius,
        max_tile=info.max_tile,
    )


def _metrics(
    registry: CollectorRegistry, engine: EngineClient, *, clock: Callable[[], float]
) -> ItemMetrics:
    return ItemMetrics(UPSCALE, _METRICS, registry, engine, clock=clock)


def _first_question(model: str) -> FirstQuestion:
    read = "import json, sys; print(json.load(sys.stdin)['size'])"
    return FirstQuestion(
        path="/v1/images/upscale",
        fields={"model": model, "image": _PIXEL},
        then=f"python3 -c {shlex.quote(read)}",
    )


SERVED_UPSCALING = ServedKind(
    kind=UPSCALE,
    deed="enlarges images",
    routes="/v1/images/upscale",
    routers=("server.routes.upscaling:router",),
    nothing_served="no model that enlarges images is served here; start the server with one, such "
    "as --model realesrgan-x4plus, or with load_on_first_use",
    bodies=(UpscaleImageRequest,),
    places=_places,
    fill_in=_fill_in,
    card=_card,
    metrics=_metrics,
    first_question=_first_question,
    default_model="realesrgan-x4plus",
    other_models=("realesrgan-x4plus-anime", "realesr-animevideov3"),
)
