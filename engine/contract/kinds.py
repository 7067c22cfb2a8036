"""The table of engines: which checkpoints each one loads, and which operations its models offer.

Client, supervisor, messages and the worker's loop read it and name no engine. A new engine is a row
here and a folder of its own; `docs/ADDING_AN_OPERATION.md` has the rest. Engines are named and not
imported, as the server process reads this table, too, and has no torch.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from engine.contract.image_settings import ImageSettings, PixelSettings
from engine.contract.operations import (
    DRAW,
    EMBED,
    ENLARGE,
    GENERATE,
    MATTE,
    SCORE,
    AnyOperation,
    operation_of,
)
from engine.contract.request import Info, Stats
from engine.contract.text_settings import TextSettings, TokenSettings
from engine.contract.worker_settings import WorkerSettings


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kind:
    """The models that one engine serves."""

    name: str
    operations: tuple[AnyOperation, ...]
    """What its models may offer. The first one is what they are made for: all offer it, and its
    info and statistics hold those of the others."""
    settings: type[WorkerSettings]
    """The settings that its engine receives."""
    layouts: tuple[str, ...]
    """The layouts of checkpoints that may be of this kind
    (`engine.weights.source.Checkpoint.layout`)."""
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

    @property
    def main(self) -> AnyOperation:
        """The operation that its models are made for."""
        return self.operations[0]


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            name="text",
            operations=(GENERATE, EMBED),
            settings=TextSettings,
            layouts=("folder", "gguf"),
            loader="engine.llm.start.loading:load_engine",
            planner="engine.planning.text:plan",
            further_models=("speculative_model", "mmproj"),
            has_text_side=True,
            yields=False,
            threads_change_bits=False,
        ),
        Kind(
            name="image",
            operations=(DRAW,),
            settings=ImageSettings,
            layouts=("diffusers", "single_file"),
            loader="engine.diffusion.loading:load_engine",
            planner="engine.diffusion.planning:plan",
            has_text_side=False,
            yields=True,
            threads_change_bits=True,
        ),
        Kind(
            name="reranker",
            operations=(SCORE,),
            settings=TokenSettings,
            layouts=("folder", "gguf"),
            recognise="engine.embedding.scorers:scores_pairs",
            loader="engine.embedding.scorers:load_engine",
            has_text_side=True,
            yields=False,
            threads_change_bits=False,
        ),
        Kind(
            name="embedding",
            operations=(EMBED,),
            settings=TokenSettings,
            layouts=("folder", "gguf"),
            recognise="engine.embedding.loading:makes_embeddings",
            loader="engine.embedding.loading:load_engine",
            has_text_side=True,
            yields=False,
            threads_change_bits=False,
        ),
        Kind(
            name="upscale",
            operations=(ENLARGE,),
            settings=PixelSettings,
            layouts=("single_file", "torch_file", "ncnn"),
            recognise="engine.upscaling.loading:is_upscaler",
            loader="engine.upscaling.loading:load_engine",
            has_text_side=False,
            yields=True,
            threads_change_bits=True,
        ),
        Kind(
            name="matting",
            operations=(MATTE,),
            settings=PixelSettings,
            layouts=("onnx",),
            loader="engine.matting.loading:load_engine",
            has_text_side=False,
            yields=True,
            threads_change_bits=True,
        ),
    )
}
"""The kinds by name."""


def kind_of(value: Info | Stats) -> Kind:
    """The kind of model that an info or an engine's statistics belong to."""
    return kind_for(operation_of(value))


def kind_for(operation: AnyOperation) -> Kind:
    """The kind of model that is made for an operation."""
    return next(kind for kind in KINDS.values() if kind.main is operation)


def imported(name: str) -> Any:
    """The value of `module:name`; imports the module."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
