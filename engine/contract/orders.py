"""The orders of terminal commands. A process of its own carries each of them out
(`engine/processes/ordered_process.py`). Fields with a help text are the commands' options
(`server/terminal/order_options.py`)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from engine.contract.knob import check_bounds, knob
from engine.contract.settings import EngineConfig
from engine.contract.worker_settings import CpuIsa
from engine.errors import InvalidParameter

Task = Literal["text", "image"]
Optimizer = Literal["adamw", "sgd"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What every order says: how to load a model, and where to look for it.

    Attributes:
        carried_out_by: `module:function` that takes an order and tells of progress. It is named
            and not imported, as it needs torch.
        uses_operations: whether it uses our C++ operations.
    """

    carried_out_by: ClassVar[str]
    uses_operations: ClassVar[bool] = True
    config: EngineConfig = field(default_factory=EngineConfig)
    cache_dir: Path = Path("~/.cache/tandem")
    offline: bool = False
    cpu_isa: CpuIsa = "auto"

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class TrainingOrder(Order):
    """An order to train an adapter. The adapter is always trained in float32."""

    carried_out_by = "engine.commands.training.run:carry_out"
    uses_operations = False
    task: Task = knob(help="What the model generates: text or images.")
    model: str = knob("", "Model to adapt, as in serve.")
    data: Path = knob(None, "Texts: a JSONL file. Images: a folder of pictures with captions.")
    output: Path = knob(None, "Folder for the results.")
    rank: int = knob(8, "Rank of the update.", ge=1, le=256)
    alpha: float = knob(
        None, "Scale: the update is multiplied by alpha/rank. [the rank]", ge=1e-6, le=1e6
    )
    steps: int = knob(300, "Number of training steps.", ge=1, le=1_000_000)
    batch_size: int = knob(4, "Examples per step.", ge=1, le=1024)
    learning_rate: float = knob(2e-4, "Peak learning rate.", ge=1e-9, le=10.0)
    optimizer: Optimizer = knob("adamw", "Optimizer for the adapter.")
    precision: Precision = knob("float32", "Precision of the frozen weights.")
    targets: tuple[str, ...] = knob(
        (), "Layers to adapt by name, such as q_proj; may be repeated. [the usual ones]"
    )
    max_length: int = knob(
        256, "Maximum length of a text, in tokens; the rest is cut.", ge=2, le=131_072
    )
    size: int = knob(64, "Width and height of pictures.", ge=8, le=4096)
    caption_dropout: float = knob(
        0.1, "Share of images trained without their caption.", ge=0.0, le=1.0
    )
    seed: int = knob(0, "The same seed trains the same adapter.")
    save_every: int = knob(100, "Steps between checkpoints; 0: none.", ge=0, le=1_000_000)
    sample_every: int = knob(0, "Steps between samples; 0: none.", ge=0, le=1_000_000)
    sample_prompts: tuple[str, ...] = knob((), "Prompt for samples; may be repeated.")
    resume: bool = knob(False, "Continue from the last checkpoint in --output.")
    estimate: str | None = knob(
        None,
        "Only estimate the memory for training such a model: llama-3-8b, sd-1.5, sdxl, flux.",
    )

    def __post_init__(self) -> None:
        if self.estimate is None and not (self.model and self.data and self.output):
            raise InvalidParameter("give --model, --data and --output; or --estimate")
        # An estimate reads and writes no files.
        defaults = {"alpha": float(self.rank), "data": Path(), "output": Path()}
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        super().__post_init__()
        if self.size % 8:
            raise InvalidParameter(f"size is {self.size}; it must be a multiple of 8", param="size")
        if self.sample_every and not self.sample_prompts:
            raise InvalidParameter(
                "samples need a prompt; give --sample-prompt", param="sample_every"
            )


@dataclass(frozen=True, kw_only=True)
class QuantizingOrder(Order):
    """An order for a checkpoint with fewer bits per weight. `output` does not exist yet; None
    leaves a number to the method."""

    carried_out_by = "engine.commands.quantizing.order:carry_out"
    uses_operations = False
    model: str = knob(help="Model to quantize, as in serve.")
    method: str = knob(help="int8, int4, gptq, awq, or gguf- and a type, such as gguf-q4_k_m.")
    output: Path = knob(help="Folder or GGUF file to write.")
    bits: int | None = knob(None, "Bits for gptq: 2, 3, 4 or 8.", ge=1)
    group_size: int | None = knob(None, "Number of weights that share a scale.", ge=1)
    calibration: Path | None = knob(None, "Text file to calibrate gptq and awq with.")


@dataclass(frozen=True, kw_only=True)
class PlanningOrder(Order):
    """An order to plan a model's memory.

    Attributes:
        gpu: a name of `engine.planning.chips.CHIPS`.
        measures_speed: whether this machine's processor is measured, for which the C++ operations
            are built.
    """

    carried_out_by = "engine.planning.planner:make_plan"
    model: str = knob(help="Model to plan for, as in serve.")
    gpu: str | None = knob(None, "h100, a100, l4, 4090, …. Default: this machine's device.")
    concurrency: int = knob(1, "Texts or pictures at the same time.", ge=1)
    context: int | None = knob(None, "Tokens per text. Default: the model's maximum.", ge=1)
    measures_speed: bool = True


@dataclass(frozen=True, kw_only=True)
class PullingOrder(Order):
    """An order to fetch a model."""

    carried_out_by = "engine.commands.pulling:pull"
    uses_operations = False
    model: str


@dataclass(frozen=True, kw_only=True)
class MeasuringOrder(Order):
    """An order to score a text with a model.

    Attributes:
        model, against: references (`engine.weights.source`); `against` is the original that the
            model is compared with, if any.
        text, context, passages: see `engine.text.scores.passages.ScoredFile`.
        save: write the result beside the model's weights; needs an original.
    """

    carried_out_by = "engine.commands.quality.measurement:measure"
    model: str
    against: str | None = None
    text: Path
    context: int
    passages: int | None = None
    save: bool = False
