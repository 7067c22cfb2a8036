"""Engines of the toy family, for tests of what happens to requests."""

import pytest
import torch

from engine.diffusion.drawing_factory import DrawingFactory
from engine.diffusion.engine import DiffusionEngine, DiffusionLimits
from tests.helpers.diffusion.toy_family import ToyFamily


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread: small tensors gain nothing from more, which wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_engine():
    """`make_engine(family, **limits)`, or with a `source` of drawings instead, and with a table of
    `adapters` → an engine that is shut down after the test."""
    engines = []

    def make(family=None, *, source=None, adapters=None, **changes):
        limits = {
            "max_num_rows": 16,
            "max_batch_pixels": 1 << 20,
            "max_num_images": 32,
            "max_num_queued": 64,
            **changes,
        }
        source = source or DrawingFactory(family or ToyFamily())
        engines.append(DiffusionEngine(source, DiffusionLimits(**limits), adapters))
        return engines[-1]

    yield make
    for engine in engines:
        engine.shutdown()
