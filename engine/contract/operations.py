"""What models can be asked to do: one row for each operation.

An operation owns its request, the events that answer it, its statistics and what the server must
know of a model to offer it. A model offers one operation or several (`engine.contract.engines`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import GenericAlias
from typing import Any, Generic

from engine.contract.draw import PARAMS, ImageEvent, ImageModelInfo, ImageRequest, ImageStats
from engine.contract.embed import (
    EmbeddingEvent,
    EmbeddingModelInfo,
    EmbeddingRequest,
    EmbeddingStats,
)
from engine.contract.enlarge import UpscaleEvent, UpscaleModelInfo, UpscaleRequest, UpscaleStats
from engine.contract.generate import EngineStats, GenerateRequest, ModelInfo, TokenEvent
from engine.contract.matte import MattingEvent, MattingModelInfo, MattingRequest, MattingStats
from engine.contract.request import Event, EventT, Info, InfoT, Request, Stats, StatsT
from engine.contract.score import PairEvent, PairsRequest, PairStats, RerankerInfo
from engine.errors import InternalError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Operation(Generic[EventT, StatsT, InfoT]):
    """What a model can be asked to do. Its four types belong to no other operation and identify
    it."""

    name: str
    makes: str
    """What it makes, as the end of a sentence."""
    request: type[Request[EventT]]
    event: type[EventT]
    stats: type[StatsT]
    info: type[InfoT]
    variants: Mapping[str, Any] = field(default_factory=dict)
    """The types of requests by `Request.variant`; empty if all have the type `request`."""

    def request_type(self, variant: str) -> type[Request[EventT]]:
        """The type of the requests of a variant.

        Raises:
            KeyError: there is no such variant.
        """
        found: type[Request[EventT]] = self.variants[variant] if self.variants else self.request
        return found

    def stats_among(self, stats: Stats | None) -> StatsT | None:
        """This operation's part of an engine's statistics; None if it has none."""
        if stats is None or isinstance(stats, self.stats):
            return stats
        return next((part for part in stats.parts if isinstance(part, self.stats)), None)

    def info_among(self, info: Info) -> InfoT | None:
        """This operation's part of a model's info; None if the model does not offer it."""
        if isinstance(info, self.info):
            return info
        return next((part for part in info.parts if isinstance(part, self.info)), None)


GENERATE = Operation(
    name="generate",
    makes="text",
    request=GenerateRequest,
    event=TokenEvent,
    stats=EngineStats,
    info=ModelInfo,
)
DRAW = Operation(
    name="draw",
    makes="images",
    request=ImageRequest,
    event=ImageEvent,
    stats=ImageStats,
    info=ImageModelInfo,
    variants={task: GenericAlias(ImageRequest, (own,)) for task, own in PARAMS.items()},
)
EMBED = Operation(
    name="embed",
    makes="embeddings",
    request=EmbeddingRequest,
    event=EmbeddingEvent,
    stats=EmbeddingStats,
    info=EmbeddingModelInfo,
)
SCORE = Operation(
    name="score",
    makes="scores of pairs of texts",
    request=PairsRequest,
    event=PairEvent,
    stats=PairStats,
    info=RerankerInfo,
)
ENLARGE = Operation(
    name="enlarge",
    makes="larger images",
    request=UpscaleRequest,
    event=UpscaleEvent,
    stats=UpscaleStats,
    info=UpscaleModelInfo,
)
MATTE = Operation(
    name="matte",
    makes="mattes",
    request=MattingRequest,
    event=MattingEvent,
    stats=MattingStats,
    info=MattingModelInfo,
)

AnyOperation = Operation[Any, Any, Any]
OPERATIONS: dict[str, AnyOperation] = {
    one.name: one for one in (GENERATE, DRAW, EMBED, SCORE, ENLARGE, MATTE)
}
"""The operations by name, in the order in which models are listed."""


def operation_of(value: Request[Any] | Event | Stats | Info) -> AnyOperation:
    """The operation that a request, an event, statistics or an info belongs to.

    Raises:
        InternalError: no operation has this type.
    """
    for one in OPERATIONS.values():
        if type(value) in (one.request, one.event, one.stats, one.info):
            return one
    raise InternalError(f"{type(value).__name__} belongs to no operation")
