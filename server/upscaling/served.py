"""The upscaling kind: what the server knows of models that enlarge images, besides their routes."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from engine.contract.enlarge import UpscaleModelInfo
from engine.contract.operations import ENLARGE
from server.http.item_metrics import ItemMetrics, ItemNames
from server.http.schemas import variant
from server.http.served_operation import FirstQuestion, ServedOperation, card_of
from server.images.served import image_places
from server.protocol.upscaling import UpscaleImageRequest, UpscaleModelCard

_METRICS = ItemNames(
    subsystem="upscale",
    items="images",
    totals={
        "num_tiles": "Tiles of all images.",
        "output_megapixels": "Megapixels of the results.",
    },
    step_sizes={"step_tiles": "Tiles of a step."},
)


def _fill_in(properties: dict[str, Any], infos: Sequence[UpscaleModelInfo]) -> None:
    if infos:
        variant(properties["scale"], "number")["maximum"] = max(info.scale for info in infos)
        variant(properties["tile"], "integer")["maximum"] = max(info.max_tile for info in infos)


def _card(info: UpscaleModelInfo) -> UpscaleModelCard:
    radius = info.receptive_radius
    overlap = None if radius is None else 2 * radius
    return card_of(UpscaleModelCard, info, exact_overlap=overlap)


SERVED_UPSCALING = ServedOperation(
    operation=ENLARGE,
    deed="enlarges images",
    routes="/v1/images/upscale",
    routers=("server.routes.upscaling:router",),
    nothing_served="no model that enlarges images is served here; start the server with one, such "
    "as --model realesrgan-x4plus, or with load_on_first_use",
    bodies=(UpscaleImageRequest,),
    places=image_places,
    fill_in=_fill_in,
    card=_card,
    metrics=partial(ItemMetrics, ENLARGE, _METRICS),
    first_question=lambda model: FirstQuestion(
        words=("upscale", "image.png", "-o", "image-large.png")
    ),
    default_model="realesrgan-x4plus",
    other_models=("realesrgan-x4plus-anime", "realesr-animevideov3"),
)
