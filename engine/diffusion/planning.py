"""Plans an image model's memory from the headers of its files."""

import math
import os
from heapq import nlargest
from pathlib import Path
from typing import get_args

from engine.contract.image_settings import ImageQuantization, ImageSettings
from engine.diffusion.activations import activation_bytes
from engine.diffusion.families.footprint import weight_bytes
from engine.diffusion.families.pipeline_facts import facts_of
from engine.diffusion.loading import image_dtype
from engine.files.checkpoint_files import read_optional_json
from engine.lora.images.contents import find_file, read_contents
from engine.lora.loaded_adapters import cause_of
from engine.planning.report import AdapterFacts, PlanReport, PlanRow, Target
from engine.runtime.device import torch_dtype
from engine.weights.source import Checkpoint

_DENOISERS = ("unet", "transformer")
_USUAL_SIDE = 1024
"""The side of pictures in pixels, if the files do not say it, and of reference images."""


def plan(checkpoint: Checkpoint, intent: ImageSettings, target: Target) -> PlanReport:
    """Plan for pictures of the model's usual size. The memory of steps is a rough bound.

    Raises:
        ModelLoadError: the files cannot be used.
    """
    device = target.machine.device
    dtype = torch_dtype(image_dtype(intent, device))
    side = _usual_side(checkpoint)
    facts = facts_of(checkpoint)
    row = activation_bytes(
        checkpoint,
        num_pixels=side * side,
        num_reference_pixels=facts.max_references * _USUAL_SIDE**2,
        dtype_bytes=dtype.itemsize,
    )
    step = row * target.concurrency
    free = target.machine.free_memory_bytes
    adapters = adapter_facts(intent, dtype.itemsize)
    held = 0 if adapters is None else adapters.held_bytes
    rows = []
    for name in get_args(ImageQuantization):
        weights = weight_bytes(checkpoint, dtype=dtype, quantization=name, device=device)
        rows.append(
            PlanRow(
                quantization=name,
                is_stored=False,
                weight_bytes=weights,
                adapter_bytes=held,
                step_bytes=step,
                process_bytes=target.process_bytes,
                fits=weights + held + step <= free,
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
        adapters=adapters,
        rows=rows,
    )


def adapter_facts(intent: ImageSettings, dtype_bytes: int) -> AdapterFacts | None:
    """The memory of LoRA adapters: the numbers of their files in the model's type. None: the model
    may have no adapters."""
    if not intent.max_adapters:
        return None
    sizes: list[int] = []
    failed: dict[str, str] = {}
    for name, place in intent.adapters.items():
        try:
            contents = read_contents(find_file(Path(os.path.expanduser(place))))
        except Exception as error:  # whatever is wrong with a file, the model is still planned
            failed[name] = cause_of(error, name).message
            continue
        shapes = [part.shape for layer in contents.values() for part in layer.parts.values()]
        numbers = sum(map(math.prod, shapes))
        sizes.append(numbers * dtype_bytes)
    places = sum(nlargest(intent.max_adapter_slots, sizes))
    limit = intent.adapter_bytes
    return AdapterFacts(
        max_adapters=intent.max_adapters,
        max_slots=intent.max_adapter_slots,
        num_read=len(sizes),
        place_bytes=places,
        limit_bytes=limit,
        held_bytes=places if limit is None else min(places, limit),
        failed=failed,
    )


def _usual_side(checkpoint: Checkpoint) -> int:
    """The side in pixels of the pictures that the model was trained on."""
    if checkpoint.layout != "diffusers":
        return _USUAL_SIDE
    denoisers = (read_optional_json(checkpoint.path / n / "config.json") for n in _DENOISERS)
    cells = next((one["sample_size"] for one in denoisers if "sample_size" in one), None)
    channels = read_optional_json(checkpoint.path / "vae" / "config.json").get("block_out_channels")
    if not isinstance(cells, int) or not isinstance(channels, list) or not channels:
        return _USUAL_SIDE
    return cells << (len(channels) - 1)
