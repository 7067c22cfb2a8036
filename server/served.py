"""The operations that the server offers: one row each, from the folder of the operation."""

from typing import Any

from engine.contract.operations import AnyOperation
from server.embeddings.served import SERVED_EMBEDDINGS, SERVED_RERANKERS
from server.http.served_operation import ServedOperation
from server.images.served import SERVED_IMAGES
from server.matting.served import SERVED_MATTING
from server.protocol.embeddings import EmbeddingModelCard
from server.protocol.matting import MattingModelCard
from server.protocol.models import ImageModelCard, ModelCard
from server.protocol.scores import RerankerCard
from server.protocol.upscaling import UpscaleModelCard
from server.text.served import SERVED_TEXT
from server.upscaling.served import SERVED_UPSCALING

SERVED: dict[AnyOperation, ServedOperation[Any, Any]] = {
    SERVED_TEXT.operation: SERVED_TEXT,
    SERVED_IMAGES.operation: SERVED_IMAGES,
    SERVED_EMBEDDINGS.operation: SERVED_EMBEDDINGS,
    SERVED_RERANKERS.operation: SERVED_RERANKERS,
    SERVED_UPSCALING.operation: SERVED_UPSCALING,
    SERVED_MATTING.operation: SERVED_MATTING,
}
"""All operations, in the order in which models are listed."""

AnyCard = (
    ModelCard
    | ImageModelCard
    | EmbeddingModelCard
    | RerankerCard
    | UpscaleModelCard
    | MattingModelCard
)
"""A model card that `GET /v1/models` may list."""
