"""The kinds of model that are served: a row each, from the folder of the kind."""

from typing import Any

from engine.kinds import AnyKind
from server.http.served_kind import ServedKind
from server.images.kind import SERVED_IMAGES
from server.protocol.models import ImageModelCard, ModelCard
from server.text.kind import SERVED_TEXT

SERVED: dict[AnyKind, ServedKind[Any, Any]] = {
    SERVED_TEXT.kind: SERVED_TEXT,
    SERVED_IMAGES.kind: SERVED_IMAGES,
}
"""In the order in which models are listed."""

AnyCard = ModelCard | ImageModelCard
"""What `GET /v1/models` may list."""
