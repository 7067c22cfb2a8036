"""A second kind of stage, only for tests: it doubles a picture, some rows of it in each step.

Its groups are called as the toy family's, so that only the engine keeps the two apart.
"""

from functools import partial

import numpy as np

from engine.diffusion.drawing import Drawing
from engine.diffusion.prompt_cache import Lookups
from engine.pictures.arrays import array_of, pixels_of
from tests.helpers.diffusion.toy_family import CHANNELS, FACTOR

DOUBLE = "double it"


class Doubling:
    """`levels`: `[H, W, C]`; a step doubles one of `num_steps` bands of them."""

    name = "double"
    num_rows = 1

    def __init__(self, levels, num_steps, source):
        self.levels = levels
        self.num_steps = num_steps
        self.source = source
        self.doubled = []

    @property
    def group(self):
        height, width, _ = self.levels.shape
        return ("base", (CHANNELS, height // FACTOR, width // FACTOR))

    @property
    def num_pixels(self):
        return self.levels.shape[0] * self.levels.shape[1]

    @property
    def step(self):
        return len(self.doubled)

    def compute(self, stages):
        assert self in stages and all(type(stage) is Doubling for stage in stages)
        self.source.calls.append((self.name, len(stages), self.levels.shape))
        return [np.kron(stage.band(), np.ones((2, 2, 1), np.uint8)) for stage in stages]

    def band(self):
        return np.array_split(self.levels, self.num_steps)[self.step]

    def advance(self, outcome):
        self.doubled.append(outcome)

    def result(self):
        return partial(joined, tuple(self.doubled))

    def preview(self):
        return partial(joined, tuple(self.doubled))


def joined(bands):
    return pixels_of(np.concatenate(bands))


class DoublingSource:
    """Doubles where the prompt says so; all other requests are the `rest`'s, if there is one.

    Attributes:
        calls: (kind of stage, number of stages, shape) of each call of its own.
    """

    def __init__(self, rest=None):
        self.lookups = Lookups() if rest is None else rest.lookups
        self.calls = []
        self._rest = rest

    def create(self, request):
        if self._rest is not None and not request.prompt.startswith(DOUBLE):
            return self._rest.create(request)
        levels, params = array_of(request.images[0]), request.params
        return [
            Drawing(
                request=request,
                index=index,
                seed=params.seed + index,
                stage=Doubling(levels, params.num_inference_steps, self),
            )
            for index in range(params.n)
        ]
