"""The kinds of model that the server serves: one row each, from the folder of the kind."""

from typing import Any

from engine.contract.operations import AnyOperation
from server.embeddings.kind import SERVED_EMBEDDINGS, SERVED_RERANKERS
from server.http.served_kind import ServedKind
from server.images.kind import SERVED_IMAGES
from server.matting.kind import SERVED_MATTING
from server.protocol.embeddings import EmbeddingModelCard
from server.protocol.matting import MattingModelCard
from server.protocol.models import ImageModelCard, ModelCard
from server.protocol.scores import RerankerCard
from server.protocol.upscaling import UpscaleModelCard
from server.text.kind import SERVED_TEXT
from server.upscaling.kind import SERVED_UPSCALING

SERVED: dict[AnyOperation, ServedKind[Any, Any]] = {
    SERVED_TEXT.kind: SERVED_TEXT,
    SERVED_IMAGES.kind: SERVED_IMAGES,
    SERVED_EMBEDDINGS.kind: SERVED_EMBEDDINGS,
    SERVED_RERANKERS.kind: SERVED_RERANKERS,
    SERVED_UPSCALING.kind: SERVED_UPSCALING,
    SERVED_MATTING.kind: SERVED_MATTING,
}
"""All kinds, in the order in which models are listed."""

AnyCard = (
    ModelCard
    | ImageModelCard
    | EmbeddingModelCard
    | RerankerCard
    | UpscaleModelCard
    | MattingModelCard
)
"""A model card that `GET /v1/models` may list."""
