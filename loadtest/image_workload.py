"""Image workloads: the pictures to ask for and their steps. Made before the run."""

import random
from dataclasses import dataclass
from typing import Any

from loadtest.workload import TokenRange, Workload

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple")
BACKGROUNDS = ("white", "black", "gray")
RELATIONS = ("left of", "right of", "above", "below")
SIZES = ("small ", "large ", "")

StepRange = TokenRange
"""An inclusive range of step counts, written as `30` or `10:40`."""

_SEEDS = 2**31


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """The settings that all pictures of a workload share. `size` is the side in pixels."""

    size: int
    steps: StepRange
    guidance: float = 4.0

    def to_json(self) -> dict[str, Any]:
        return {"size": self.size, "steps": str(self.steps), "guidance": self.guidance}


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """A picture to ask for. `at_s` is its time after the start, None in a closed loop.

    `role` distinguishes the kinds of requests of a workload.
    """

    index: int
    prompt: str
    seed: int
    size: int
    steps: int
    guidance: float
    at_s: float | None = None
    role: str | None = None


def scene_prompt(rng: random.Random) -> str:
    """A caption of two coloured shapes, at most 75 tokens even if every letter is a token."""
    first, second = (
        f"a {rng.choice(SIZES)}{colour} {shape}"
        for colour, shape in zip(rng.sample(COLOURS, 2), rng.sample(SHAPES, 2), strict=True)
    )
    return f"{first} {rng.choice(RELATIONS)} {second} on a {rng.choice(BACKGROUNDS)} background"


def closed_images(
    settings: ImageSettings, concurrency: int, num_requests: int, seed: int
) -> Workload[PlannedImage]:
    """A workload of `concurrency` clients that ask for the next picture when they have the last.

    The step counts are spread evenly over the range and then shuffled, so that every run has the
    same amount of work whatever its seed.
    """
    rng = random.Random(seed)
    steps = spread(settings.steps, num_requests)
    rng.shuffle(steps)
    requests = [_planned(i, settings, count, rng) for i, count in enumerate(steps)]
    parameters = settings.to_json() | {"clients": concurrency, "seed": seed}
    return Workload("images", requests, concurrency, parameters)


def spread(steps: StepRange, count: int) -> list[int]:
    """`count` step counts spread evenly over the range; its middle if there is only one."""
    if count == 1:
        return [(steps.low + steps.high) // 2]
    span = steps.high - steps.low
    return [steps.low + round(i * span / (count - 1)) for i in range(count)]


def behind_images(
    settings: ImageSettings, num_long: int, long_steps: int, delay_s: float, seed: int
) -> Workload[PlannedImage]:
    """`num_long` pictures of `long_steps` at once, and `delay_s` later one of `settings.steps`."""
    rng = random.Random(seed)
    requests = [
        _planned(i, settings, long_steps, rng, at_s=0.0, role="long") for i in range(num_long)
    ]
    requests.append(
        _planned(num_long, settings, settings.steps.low, rng, at_s=delay_s, role="short")
    )
    parameters = settings.to_json() | {
        "num_long": num_long,
        "long_steps": long_steps,
        "delay_s": delay_s,
        "seed": seed,
    }
    return Workload("behind", requests, None, parameters)


def _planned(
    index: int,
    settings: ImageSettings,
    steps: int,
    rng: random.Random,
    at_s: float | None = None,
    role: str | None = None,
) -> PlannedImage:
    return PlannedImage(
        index=index,
        prompt=scene_prompt(rng),
        seed=rng.randrange(_SEEDS),
        size=settings.size,
        steps=steps,
        guidance=settings.guidance,
        at_s=at_s,
        role=role,
    )
