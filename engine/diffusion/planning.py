"""What an image model will take of a device, from the headers of its files."""

from typing import get_args

from engine.checkpoint_files import read_optional_json
from engine.config import EngineConfig
from engine.diffusion.families.footprint import weight_bytes
from engine.diffusion.loading import ACTIVATION_BYTES_PER_PIXEL, image_dtype
from engine.planning.report import PlanReport, PlanRow, Target
from engine.quantization.table import ImageQuantization
from engine.runtime.device import torch_dtype
from engine.weights.source import Checkpoint

_DENOISERS = ("unet", "transformer")
_USUAL_SIDE = 1024
"""Pixels, where the files do not tell."""


def plan(checkpoint: Checkpoint, intent: EngineConfig, target: Target) -> PlanReport:
    """For pictures of the model's usual size. What steps take is a rough bound.

    Raises:
        ModelLoadError: its files cannot be used.
    """
    dtype = torch_dtype(image_dtype(intent, target.machine.device))
    side = _usual_side(checkpoint)
    step = ACTIVATION_BYTES_PER_PIXEL * side * side * target.concurrency
    free = target.machine.free_memory_bytes
    rows = []
    for name in get_args(ImageQuantization):
        weights = weight_bytes(checkpoint, dtype=dtype, quantization=name)
        rows.append(
            PlanRow(
                quantization=name,
                is_stored=False,
                weight_bytes=weights,
                step_bytes=step,
                process_bytes=target.process_bytes,
                fits=weights + step <= free,
                flags=[] if name == "none" else [f"--image-quantization {name}"],
            )
        )
    return PlanReport(
        model=checkpoint.name,
        kind="image",
        device=target.device,
        free_bytes=free,
        concurrency=target.concurrency,
        context=None,
        rows=rows,
    )


def _usual_side(checkpoint: Checkpoint) -> int:
    """Pixels of a side of the pictures that the model was trained on."""
    if checkpoint.kind != "diffusers":
        return _USUAL_SIDE
    denoisers = (read_optional_json(checkpoint.path / n / "config.json") for n in _DENOISERS)
    cells = next((one["sample_size"] for one in denoisers if "sample_size" in one), None)
    channels = read_optional_json(checkpoint.path / "vae" / "config.json").get("block_out_channels")
    if not isinstance(cells, int) or not isinstance(channels, list) or not channels:
        return _USUAL_SIDE
    return cells << (len(channels) - 1)
