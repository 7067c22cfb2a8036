"""The table of the kinds of model, with the requests, answers and loader of each.

Client, supervisor, messages and the worker's loop read it and name no kind. A new kind is a row
here and a folder of its own; `docs/ADDING_A_KIND.md` has the rest. Engines are named and not
imported, as the server process reads this table, too, and has no torch.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic

from engine.contract.draw import ImageEvent, ImageModelInfo, ImageRequest, ImageStats
from engine.contract.embed import (
    EmbeddingEvent,
    EmbeddingModelInfo,
    EmbeddingRequest,
    EmbeddingStats,
)
from engine.contract.enlarge import UpscaleEvent, UpscaleModelInfo, UpscaleRequest, UpscaleStats
from engine.contract.generate import EngineStats, GenerateRequest, ModelInfo, TokenEvent
from engine.contract.image_settings import ImageSettings, PixelSettings
from engine.contract.matte import MattingEvent, MattingModelInfo, MattingRequest, MattingStats
from engine.contract.request import EventT, Info, InfoT, Request, Stats, StatsT
from engine.contract.text_settings import TextSettings, TokenSettings
from engine.contract.worker_settings import WorkerSettings
from engine.errors import InternalError

if TYPE_CHECKING:  # for workers only
    pass


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kind(Generic[EventT, StatsT, InfoT]):
    """One kind of model. Its four types belong to no other kind and identify it."""

    name: str
    makes: str
    """What such a model makes, as the end of a sentence."""
    request: type[Request[EventT]]
    event: type[EventT]
    stats: type[StatsT]
    info: type[InfoT]
    settings: type[WorkerSettings]
    """The settings that its engine receives."""
    layouts: tuple[str, ...]
    """The layouts of checkpoints that may be of this kind
    (`engine.weights.source.Checkpoint.kind`)."""
    recognise: str | None = None
    """`module:function` that says, given such a checkpoint and the wanted kind, whether the
    checkpoint is of this kind. None: it is if no other kind recognises it."""
    loader: str
    """`module:function` that makes an engine and its info from a checkpoint, a model id, its
    settings and a host."""
    planner: str | None = None
    """`module:function` that makes an `engine.planning.report.PlanReport` from a checkpoint,
    its settings and a `Target`, for `tandem plan`. None: this kind is not planned."""
    further_models: tuple[str, ...] = ()
    """The settings that name further models to fetch."""
    has_text_side: bool
    """Whether the server uses its tokenizer, which is then tried before the model is ready."""
    yields: bool
    """Whether its steps leave time to kinds that do not yield (`image_share`)."""
    threads_change_bits: bool
    """Whether another number of threads can change the order of sums in its libraries."""

    def own_stats(self, stats: Stats | None) -> StatsT | None:
        """`stats` if they are of this kind, else None."""
        return stats if isinstance(stats, self.stats) else None


TEXT = Kind(
    name="text",
    makes="text",
    request=GenerateRequest,
    event=TokenEvent,
    stats=EngineStats,
    info=ModelInfo,
    settings=TextSettings,
    layouts=("folder", "gguf"),
    loader="engine.llm.start.loading:load_engine",
    planner="engine.planning.text:plan",
    further_models=("speculative_model",),
    has_text_side=True,
    yields=False,
    threads_change_bits=False,
)


IMAGE = Kind(
    name="image",
    makes="images",
    request=ImageRequest,
    event=ImageEvent,
    stats=ImageStats,
    info=ImageModelInfo,
    settings=ImageSettings,
    layouts=("diffusers", "single_file"),
    loader="engine.diffusion.loading:load_engine",
    planner="engine.diffusion.planning:plan",
    has_text_side=False,
    yields=True,
    threads_change_bits=True,
)


EMBEDDING = Kind(
    name="embedding",
    makes="embeddings",
    request=EmbeddingRequest,
    event=EmbeddingEvent,
    stats=EmbeddingStats,
    info=EmbeddingModelInfo,
    settings=TokenSettings,
    layouts=("folder", "gguf"),
    recognise="engine.embedding.loading:makes_embeddings",
    loader="engine.embedding.loading:load_engine",
    has_text_side=True,
    yields=False,
    threads_change_bits=False,
)


MATTING = Kind(
    name="matting",
    makes="mattes",
    request=MattingRequest,
    event=MattingEvent,
    stats=MattingStats,
    info=MattingModelInfo,
    settings=PixelSettings,
    layouts=("onnx",),
    loader="engine.matting.loading:load_engine",
    has_text_side=False,
    yields=True,
    threads_change_bits=True,
)


UPSCALE = Kind(
    name="upscale",
    makes="larger images",
    request=UpscaleRequest,
    event=UpscaleEvent,
    stats=UpscaleStats,
    info=UpscaleModelInfo,
    settings=PixelSettings,
    layouts=("single_file", "torch_file", "ncnn"),
    recognise="engine.upscaling.loading:is_upscaler",
    loader="engine.upscaling.loading:load_engine",
    has_text_side=False,
    yields=True,
    threads_change_bits=True,
)


AnyKind = Kind[Any, Any, Any]


KINDS: dict[str, AnyKind] = {kind.name: kind for kind in (TEXT, IMAGE, EMBEDDING, UPSCALE, MATTING)}
"""The kinds by name, in the order in which models are listed."""


def kind_of(value: Request[Any] | Stats | Info) -> AnyKind:
    """The kind that a request, statistics or an info belongs to.

    Raises:
        InternalError: no kind has this type.
    """
    for kind in KINDS.values():
        if type(value) in (kind.request, kind.stats, kind.info):
            return kind
    raise InternalError(f"{type(value).__name__} belongs to no kind of model")


def imported(name: str) -> Any:
    """The value of `module:name`; imports the module."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
