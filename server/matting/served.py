"""The matting kind: what the server knows of models that remove backgrounds, besides their
routes."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from engine.contract.matte import MattingModelInfo
from engine.contract.operations import MATTE
from server.http.item_metrics import ItemMetrics, ItemNames
from server.http.served_operation import FirstQuestion, ServedOperation
from server.images.served import image_places
from server.protocol.matting import MatteRequest, MattingModelCard

DEFAULT_MODEL = "u2netp"

_METRICS = ItemNames(
    subsystem="matting",
    items="images",
    totals={
        "num_pixels": "Pixels of all images finished.",
        "num_unknown_pixels": "Pixels of these images that a trimap left unknown.",
    },
    step_sizes={},
    step_time="step_time_s",
)


def _fill_in(properties: dict[str, Any], infos: Sequence[MattingModelInfo]) -> None:
    """Fill in nothing: no field of the body depends on the model."""


def _card(info: MattingModelInfo) -> MattingModelCard:
    return MattingModelCard(
        id=info.model,
        created=info.created,
        root=info.model,
        architecture=info.architecture,
        side=info.side,
    )


SERVED_MATTING = ServedOperation(
    operation=MATTE,
    deed="removes backgrounds",
    routes="/v1/images/matte",
    routers=("server.routes.matting:router",),
    nothing_served="no model for background removal is served here; start the server with one, "
    f"such as --model {DEFAULT_MODEL}, or with load_on_first_use",
    bodies=(MatteRequest,),
    places=image_places,
    fill_in=_fill_in,
    card=_card,
    metrics=partial(ItemMetrics, MATTE, _METRICS),
    first_question=lambda model: FirstQuestion(
        words=("cutout", "image.png", "-o", "image-cutout.png")
    ),
    default_model=DEFAULT_MODEL,
)
