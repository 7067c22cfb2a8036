"""Runs a whole training: finds the model, estimates the memory, loads and trains."""

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.commands.training.loop import Learner, Tell, train
from engine.commands.training.memory import MemoryEstimate
from engine.contract.orders import Task, TrainingOrder
from engine.errors import InsufficientMemory, InvalidParameter, UnsupportedFeature
from engine.runtime.device import machine_facts
from engine.runtime.threads import limit_threads
from engine.weights.source import Checkpoint, resolve_source

EXTRAS = ("peft", "matplotlib")
"""Packages of the extra `train`."""
GIB = 1 << 30


def carry_out(order: TrainingOrder, tell: Tell) -> dict[str, Any]:
    """Train on the CPU with all of its free memory, or only estimate the memory.

    Raises:
        EngineError: as in `run`.
    """
    # Libraries announce changes, and mistake our package `kernels` for another one.
    warnings.simplefilter("ignore", FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if order.estimate is not None:
        from engine.commands.training.shapes import estimate_shape

        check_packages()
        return {"estimate": estimate_shape(order.estimate, order).report()}
    machine = machine_facts("cpu")
    limit_threads(machine.num_cores)
    return run(order, machine.free_memory_bytes, tell)


def run(order: TrainingOrder, free_bytes: int, tell: Tell) -> dict[str, Any]:
    """Carry out a training. Returns the report, with the memory estimate.

    Args:
        free_bytes: the memory that may be used.
        tell: called with downloads, the estimate and each step.

    Raises:
        EngineError: the training is not possible; the message says why and what to change.
    """
    check_packages()
    _check_output(order)
    checkpoint = _find(order, tell)
    taken = _ESTIMATES[order.task](checkpoint, order)
    tell({"estimate": taken.report()})
    if taken.total > free_bytes:
        raise InsufficientMemory(
            f"training takes about {taken.total / GIB:.1f} GiB, {taken.activations / GIB:.1f} of "
            f"them for activations; {free_bytes / GIB:.1f} GiB are free; lower "
            f"--batch-size, --max-length or --size, or use --precision bfloat16"
        )
    order.output.mkdir(parents=True, exist_ok=True)
    report = train(_LEARNERS[order.task](checkpoint, order, tell), order, tell)
    return {**report, "estimate": taken.report()}


def check_packages() -> None:
    """Check that the packages for training are installed.

    Raises:
        UnsupportedFeature: some are not.
    """
    missing = [name for name in EXTRAS if importlib.util.find_spec(name) is None]
    if missing:
        raise UnsupportedFeature(
            f"training needs {' and '.join(missing)}; run `pip install 'tandem-server[train]'`"
        )


def _check_output(order: TrainingOrder) -> None:
    if order.resume or not order.output.exists():
        return
    if not order.output.is_dir() or any(order.output.iterdir()):
        raise InvalidParameter(
            "the output is not an empty folder; give another one, or --resume to continue the "
            "training in it",
            param="output",
        )


def _find(order: TrainingOrder, tell: Tell) -> Checkpoint:
    return resolve_source(
        order.model,
        cache_dir=order.cache_dir,
        offline=order.offline,
        on_progress=lambda fraction, line: tell({"progress": fraction, "detail": line}),
    )


def _text_learner(checkpoint: Checkpoint, order: TrainingOrder, tell: Tell) -> Learner:
    from engine.commands.training.text_learner import load_text_learner

    learner, num_cut = load_text_learner(checkpoint, order)
    if num_cut:
        tell({"warning": f"texts longer than {order.max_length} tokens are cut: {num_cut}"})
    return learner


def _image_learner(checkpoint: Checkpoint, order: TrainingOrder, tell: Tell) -> Learner:
    from engine.commands.training.image_learner import load_image_learner

    return load_image_learner(checkpoint, order)


def _text_estimate(checkpoint: Checkpoint, order: TrainingOrder) -> MemoryEstimate:
    from engine.commands.training.shapes import estimate_training, text_shape
    from engine.commands.training.text_learner import text_config

    return estimate_training(text_shape(text_config(checkpoint)), order)


def _image_estimate(checkpoint: Checkpoint, order: TrainingOrder) -> MemoryEstimate:
    from engine.commands.training.image_learner import check_family
    from engine.commands.training.shapes import estimate_training, unet_shape

    check_family(checkpoint)
    folder = checkpoint.path
    config = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    taken = estimate_training(unet_shape(config), order)
    beside = sum(_weight_bytes(folder / part) for part in ("vae", "text_encoder"))
    return replace(taken, weights=taken.weights + beside)


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


_LEARNERS: dict[Task, Callable[[Checkpoint, TrainingOrder, Tell], Learner]] = {
    "text": _text_learner,
    "image": _image_learner,
}
_ESTIMATES: dict[Task, Callable[[Checkpoint, TrainingOrder], MemoryEstimate]] = {
    "text": _text_estimate,
    "image": _image_estimate,
}
