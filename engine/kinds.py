"""The table of the kinds of model: what each is asked for, answers with, and is loaded by.

Client, supervisor, messages and the worker's loop read it and name no kind. A new kind is a row
here and a folder of its own; `docs/ADDING_A_KIND.md` says the rest. Engines are named and not
imported, as the server process reads this table, too, and does without torch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic

from engine.config import EngineConfig, WantedKind
from engine.embedding_types import (
    EmbeddingEvent,
    EmbeddingModelInfo,
    EmbeddingRequest,
    EmbeddingStats,
)
from engine.errors import InternalError
from engine.image_types import ImageEvent, ImageModelInfo, ImageRequest, ImageStats
from engine.matting_types import (
    MattingEvent,
    MattingModelInfo,
    MattingRequest,
    MattingStats,
)
from engine.types import (
    EngineStats,
    EventT,
    GenerateRequest,
    Info,
    InfoT,
    ModelInfo,
    Request,
    Stats,
    StatsT,
    TokenEvent,
)
from engine.upscale_types import UpscaleEvent, UpscaleModelInfo, UpscaleRequest, UpscaleStats

if TYPE_CHECKING:  # for workers only
    from engine.weights.source import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kind(Generic[EventT, StatsT, InfoT]):
    """One kind of model. Its four types are its own: they tell which kind a value is of."""

    name: str
    makes: str
    """Ends the sentence of what such a model makes."""
    request: type[Request[EventT]]
    event: type[EventT]
    stats: type[StatsT]
    info: type[InfoT]
    layouts: tuple[str, ...]
    """Of the checkpoints that may be of this kind (`engine.weights.source.Checkpoint.kind`)."""
    recognise: str | None = None
    """`module:function` that says of such a checkpoint, and of the kind that is wanted, whether
    it is of this kind. None: it is, if no other kind recognises it."""
    loader: str
    """`module:function` that makes an engine and its info of a checkpoint, a model id, an
    `EngineConfig` and a host, which it reports to and asks for memory."""
    planner: str | None = None
    """`module:function` that makes an `engine.planning.report.PlanReport` of a checkpoint, an
    `EngineConfig` and a `Target`, for `tandem plan`. None: such models are not planned."""
    further_models: tuple[str, ...] = ()
    """Fields of `EngineConfig` that name models which are fetched with it."""
    has_text_side: bool
    """Its tokenizer is the server's to use, and is tried before the model is ready."""
    yields: bool
    """Its steps leave time to the kinds that do not yield (`image_share`)."""
    threads_change_bits: bool
    """Its libraries may sum in another order with another number of threads."""

    def own_stats(self, stats: Stats | None) -> StatsT | None:
        """`stats`, if they are of this kind."""
        return stats if isinstance(stats, self.stats) else None


TEXT = Kind(
    name="text",
    makes="text",
    request=GenerateRequest,
    event=TokenEvent,
    stats=EngineStats,
    info=ModelInfo,
    layouts=("folder", "gguf"),
    loader="engine.llm.loading:load_engine",
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
    layouts=("single_file", "torch_file", "ncnn"),
    recognise="engine.upscaling.loading:is_upscaler",
    loader="engine.upscaling.loading:load_engine",
    has_text_side=False,
    yields=True,
    threads_change_bits=True,
)

AnyKind = Kind[Any, Any, Any]
KINDS: dict[str, AnyKind] = {kind.name: kind for kind in (TEXT, IMAGE, EMBEDDING, UPSCALE, MATTING)}
"""By name, in the order in which models are listed."""


def kind_of(value: Request[Any] | Stats | Info) -> AnyKind:
    """The kind that a request, statistics or an info belongs to.

    Raises:
        InternalError: its type is in no row.
    """
    for kind in KINDS.values():
        if type(value) in (kind.request, kind.stats, kind.info):
            return kind
    raise InternalError(f"{type(value).__name__} belongs to no kind of model")


def kind_of_checkpoint(checkpoint: "Checkpoint", wanted: WantedKind = "auto") -> AnyKind:
    """The kind that a checkpoint is of, or is wanted to be. For workers: it may import what
    recognises one."""
    fitting = [kind for kind in KINDS.values() if checkpoint.kind in kind.layouts]
    for kind in fitting:
        if kind.recognise is not None and imported(kind.recognise)(checkpoint, wanted):
            return kind
    return next(kind for kind in fitting if kind.recognise is None)


def with_fetched(
    config: EngineConfig, kind: AnyKind, fetch: Callable[[str], "Checkpoint"]
) -> EngineConfig:
    """The configuration with the further models that it names as paths of this machine."""
    named = {name: getattr(config, name) for name in kind.further_models}
    found: dict[str, Any] = {
        name: str(fetch(ref).path.absolute()) for name, ref in named.items() if ref is not None
    }
    return replace(config, **found)


def imported(name: str) -> Any:
    """What `module:name` is, the module imported if it is not yet."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
