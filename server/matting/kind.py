"""Models that take backgrounds away, as the server knows them beside their routes."""

import base64
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry

from engine.client import EngineClient
from engine.config import EngineConfig
from engine.image_types import Pixels
from engine.kinds import MATTING
from engine.matting_types import MattingModelInfo
from server.http.admission import Places
from server.http.item_metrics import ItemMetrics, ItemNames
from server.http.served_kind import FirstQuestion, ServedKind
from server.images.files import encode_image
from server.protocol.matting import MatteRequest, MattingModelCard
from server.settings import Settings

DEFAULT_MODEL = "u2netp"

_METRICS = ItemNames(
    subsystem="matting",
    items="images",
    totals={
        "num_pixels": "Pixels of all images finished.",
        "num_unknown_pixels": "Pixels of these that a trimap had left open.",
    },
    step_sizes={},
    step_time="step_time_s",
)


def _places(settings: Settings, config: EngineConfig) -> Places:
    return Places(
        what="images",
        num_running=config.max_num_images,
        num_waiting=settings.max_queued_images,
    )


def _fill_in(properties: dict[str, Any], infos: Sequence[MattingModelInfo]) -> None:
    """Nothing of a body depends on the model."""


def _card(info: MattingModelInfo) -> MattingModelCard:
    return MattingModelCard(
        id=info.model,
        created=info.created,
        root=info.model,
        architecture=info.architecture,
        side=info.side,
        methods=list(info.methods),
    )


def _metrics(
    registry: CollectorRegistry, engine: EngineClient, *, clock: Callable[[], float]
) -> ItemMetrics:
    return ItemMetrics(MATTING, _METRICS, registry, engine, clock=clock)


def _first_question(model: str) -> FirstQuestion:
    """The smallest picture there is: the shell's line has no file to send."""
    red = Pixels(width=1, height=1, channels=3, data=b"\xff\0\0")
    pixel = base64.b64encode(encode_image(red, "png")).decode("ascii")
    decode = "import json, sys; print(json.load(sys.stdin)['size'])"
    return FirstQuestion(
        path="/v1/images/matte",
        fields={"model": model, "image": pixel},
        then=f"python3 -c {shlex.quote(decode)}",
    )


SERVED_MATTING = ServedKind(
    kind=MATTING,
    deed="takes backgrounds away",
    routes="/v1/images/matte",
    routers=("server.routes.matting:router",),
    nothing_served="no model for background removal is served here; start the server with one, "
    f"such as --model {DEFAULT_MODEL}, or with load_on_first_use",
    bodies=(MatteRequest,),
    places=_places,
    fill_in=_fill_in,
    card=_card,
    metrics=_metrics,
    first_question=_first_question,
    default_model=DEFAULT_MODEL,
)
