"""Loads an image checkpoint into an engine: sizes it, loads the weights and warms up."""

import time
from dataclasses import asdict, replace
from typing import Any

import structlog
import torch

from engine.contract.draw import PARAMS, ImageModelInfo, ImageRequest, ImageTask, RedrawParams
from engine.contract.fingerprint import fingerprint
from engine.contract.host import Host
from engine.contract.image_settings import ImageSettings
from engine.contract.pixels import Pixels
from engine.contract.status import Phase
from engine.diffusion.activations import activation_bytes
from engine.diffusion.drawing_factory import DrawingFactory
from engine.diffusion.engine import DiffusionEngine, DiffusionLimits
from engine.diffusion.families.family import FamilyFacts
from engine.diffusion.families.footprint import weight_bytes
from engine.diffusion.families.registry import load_family
from engine.diffusion.families.row_layouts import is_exact
from engine.errors import ModelLoadError
from engine.lora.images.image_adapters import load_image_adapters
from engine.lora.loaded_adapters import AdapterLimits
from engine.runtime.allocator import LARGEST_MAP_BYTES, keep_freed_memory
from engine.runtime.device import machine_facts, torch_dtype
from engine.runtime.operations import build_operations
from engine.runtime.threads import limit_threads
from engine.weights.source import Checkpoint

_WARM_UP_SIDE = 256
"""The side of the warm-up picture in pixels. At a large model's own size a CPU would need most of a
minute."""

log = structlog.get_logger(__name__)


def load_engine(
    checkpoint: Checkpoint, model_id: str, intent: ImageSettings, host: Host
) -> tuple[DiffusionEngine, ImageModelInfo]:
    """Load a checkpoint and serve it as `model_id`.

    Raises:
        ModelLoadError: the checkpoint cannot be served; the message may be shown to clients.
    """
    started_s = time.monotonic()
    machine = machine_facts(intent.device)
    limit_threads(intent.num_threads or machine.num_cores)
    keep_freed_memory(LARGEST_MAP_BYTES)
    if machine.device == "cpu":
        build_operations(host)
    dtype_name = image_dtype(intent, machine.device)
    dtype = torch_dtype(dtype_name)
    weights = weight_bytes(
        checkpoint,
        dtype=dtype,
        quantization=intent.image_quantization,
        device=machine.device,
    )
    host.reserve(machine.device, "weights", weights, machine.free_memory_bytes)
    family = load_family(
        checkpoint,
        dtype=dtype,
        device=torch.device(machine.device),
        quantization=intent.image_quantization,
    )
    facts = family.facts
    seen = facts.references
    activations = activation_bytes(
        checkpoint,
        num_pixels=facts.default_width * facts.default_height,
        num_reference_pixels=0 if seen is None else seen.max_images * seen.max_pixels,
        dtype_bytes=dtype.itemsize,
    )
    host.reserve(machine.device, "activations", activations, machine.free_memory_bytes)
    limits = DiffusionLimits(
        max_num_rows=intent.max_num_rows,
        max_batch_pixels=int(intent.max_batch_megapixels * 1e6),
        max_num_images=intent.max_num_images,
        max_num_queued=intent.max_num_queued,
        scheduling_policy=intent.scheduling_policy,
        deterministic=intent.deterministic and not is_exact(family.device, dtype),
    )
    adapters = load_image_adapters(
        intent.adapters,
        family.adapted,
        host,
        AdapterLimits.of(intent, machine),
        dtype=dtype,
    )
    engine = DiffusionEngine(DrawingFactory(family), limits, adapters)
    host.report(Phase.WARMING_UP)
    warm_up(engine, trial_request(facts))
    log.info(
        "image model loaded",
        seconds=round(time.monotonic() - started_s, 1),
        family=facts.architecture,
        dtype=dtype_name,
        **asdict(limits),
    )
    info = model_info(model_id, checkpoint, facts, dtype_name, limits, intent.image_quantization)
    return engine, replace(
        info,
        adapters=adapters.names,
        adapter_digests=dict(adapters.digests),
        failed_adapters=dict(adapters.failed),
    )


def image_dtype(intent: ImageSettings, device: str) -> str:
    """The dtype of an image model, with `auto` resolved."""
    if intent.image_dtype != "auto":
        return intent.image_dtype
    return "float32" if device == "cpu" else "bfloat16"


def warm_up(engine: DiffusionEngine, trial: ImageRequest) -> None:
    """Make a small picture, so that the first request does not wait for lazy set-up.

    Raises:
        ModelLoadError: the picture cannot be made, or has values that are not finite.
    """
    engine.add(trial)
    while engine.has_work():
        events, _ = engine.step()
        for event in events:
            if event.failure is not None:
                raise ModelLoadError(
                    f"drawing a trial picture failed: {event.failure.message}; the weights are "
                    f"damaged or overflow in their dtype: fetch the model again or set another "
                    f"image_dtype"
                )
    engine.reset_totals()


def trial_request(facts: FamilyFacts) -> ImageRequest:
    """A request for a small picture, for the first of the family's tasks; the input image is
    grey."""
    task = next(task for task in ImageTask if task in facts.tasks)
    scale = 1
    if task is ImageTask.UPSCALE and facts.upscaling is not None:
        scale = facts.upscaling.scale
    width = min(facts.default_width, _WARM_UP_SIDE)
    height = min(facts.default_height, _WARM_UP_SIDE)
    needs_image, needs_mask = task is not ImageTask.TEXT_TO_IMAGE, task is ImageTask.INPAINT
    grey = _flat(width // scale, height // scale, 3, 0x80)
    mask = _flat(width, height, 1, 0xFF)
    whole: dict[str, Any] = {"strength": 1.0} if issubclass(PARAMS[task], RedrawParams) else {}
    return ImageRequest(
        request_id="warm-up",
        model="",
        prompt="a grey wall",
        params=PARAMS[task](
            width=width,
            height=height,
            num_inference_steps=1,
            seed=0,
            guidance_scale=facts.denoising.default_guidance_scale,
            **whole,
        ),
        images=[grey] if needs_image else [],
        mask=mask if needs_mask else None,
    )


def _flat(width: int, height: int, channels: int, level: int) -> Pixels:
    data = bytes([level]) * (width * height * channels)
    return Pixels(width=width, height=height, channels=channels, data=data)


def model_info(
    model_id: str,
    checkpoint: Checkpoint,
    facts: FamilyFacts,
    dtype: str,
    limits: DiffusionLimits,
    quantization: str,
) -> ImageModelInfo:
    """What the server checks requests against and shows to clients."""
    return ImageModelInfo(
        model=model_id,
        path=str(checkpoint.path),
        architecture=facts.architecture,
        dtype=dtype,
        created=int(time.time()),
        tasks=facts.tasks,
        default_width=facts.default_width,
        default_height=facts.default_height,
        size_multiple=facts.size_multiple,
        min_side=facts.min_side,
        max_pixels=facts.max_pixels,
        denoising=facts.denoising,
        upscaling=facts.upscaling,
        max_restored_pixels=facts.max_restored_pixels,
        references=facts.references,
        config_hash=fingerprint((facts, dtype, quantization, limits.deterministic)),
    )
