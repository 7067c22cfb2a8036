"""The matting kind: what the server knows of models that remove backgrounds, besides their
routes."""

from functools import partial

from engine.contract.operations import MATTE
from server.http.item_metrics import ItemMetrics, ItemNames
from server.http.served_operation import FirstQuestion, ServedOperation, card_of
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
    card=partial(card_of, MattingModelCard),
    metrics=partial(ItemMetrics, MATTE, _METRICS),
    first_question=lambda model: FirstQuestion(
        words=("cutout", "image.png", "-o", "image-cutout.png")
    ),
    default_model=DEFAULT_MODEL,
)
