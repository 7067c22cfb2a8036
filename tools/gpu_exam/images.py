"""Images of the shipped model, where diffusers is installed: those of the CPU, and the same bits
alone and beside others."""

import importlib.util
from collections.abc import Sequence
from functools import partial
from typing import Any

from tools.gpu_exam.place import Place
from tools.gpu_exam.record import Facts, Record
from tools.gpu_exam.texts import LonelyHost

MOST_DIFFERENCE = 2.0
"""Mean difference of a channel's value, of 255, between the devices in fp32."""
SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {"image_dtype": "float32"},
    "bfloat16": {"image_dtype": "bfloat16"},
    "int8-weights": {"image_quantization": "int8-weights", "image_dtype": "float32"},
    "bnb-nf4": {"image_quantization": "bnb-nf4", "image_dtype": "float32"},
}


class WrongImage(AssertionError):
    """An image is not what it should be."""


def examine(record: Record, place: Place, shard: int, num_shards: int) -> None:
    """Draw with each way to keep the weights."""
    if importlib.util.find_spec("diffusers") is None:
        record.run("diffusers", lambda: {"skipped": "diffusers is not installed"})
        return
    for name in list(SETTINGS)[: 1 if place.is_rehearsal else None]:
        record.run(name, partial(draws_alike, SETTINGS[name], place))


def draws_alike(settings: dict[str, Any], place: Place) -> Facts:
    """Draw the same images on both devices, and one of them alone.

    Raises:
        WrongImage: they differ.
    """
    seeds = (1, 2) if place.is_rehearsal else (1, 2, 3, 4)
    # A rehearsal takes the CPU's kernels: warming up with interpreted ones takes a minute.
    here = loaded(place.device.type, settings, deterministic=True)
    together = drawn(here, seeds, place)
    alone = drawn(here, seeds[:1], place)
    if together[0] != alone[0]:
        raise WrongImage("an image beside others has other bits than alone")
    there = here if place.is_rehearsal else loaded("cpu", settings, deterministic=True)
    expected = drawn(there, seeds, place)
    differences = [mean_difference(*pair) for pair in zip(together, expected, strict=True)]
    if not max(differences) <= MOST_DIFFERENCE:
        raise WrongImage(f"images differ from the CPU's by {differences} of 255")
    return {"differences": differences}


def loaded(device: str, settings: dict[str, Any], **more: Any) -> Any:
    """Load the shipped model as a worker does."""
    from engine.contract.image_settings import ImageSettings
    from engine.diffusion.loading import load_engine
    from engine.weights.source import resolve_source

    checkpoint = resolve_source("tandem-shapes", cache_dir=None, on_progress=print)  # type: ignore[arg-type]
    intent = ImageSettings(device=device, **settings, **more)
    return load_engine(checkpoint, "exam", intent, LonelyHost())[0]  # type: ignore[arg-type]


def drawn(engine: Any, seeds: Sequence[int], place: Place) -> list[bytes]:
    """Draw one image for each seed, all at the same time."""
    from engine.contract.draw import DrawParams, ImageRequest

    side, steps = (32, 1) if place.is_rehearsal else (64, 8)
    for seed in seeds:
        params = DrawParams(width=side, height=side, num_inference_steps=steps, seed=seed)
        engine.add(
            ImageRequest(request_id=str(seed), model="exam", prompt="a red circle", params=params)
        )
    found: dict[str, bytes] = {}
    while engine.has_work():
        for event in engine.step()[0]:
            if event.failure is not None:
                raise WrongImage(str(event.failure))
            if event.image is not None:
                found[event.request_id] = event.image.data
    return [found[str(seed)] for seed in seeds]


def mean_difference(ours: bytes, theirs: bytes) -> float:
    return sum(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / len(ours)
