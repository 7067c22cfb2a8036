"""One seed for all random draws of a run: a fresh one, or TEST_SEED from the environment.

The global generators of `random`, NumPy and torch are seeded for each test, and for each file that
is collected, from the run's seed and the test's name: a test draws the same whatever ran before it,
alone too. Tests draw from these generators, or from others that they seed by them. Hypothesis has
one of its own, which starts from the same seed.
"""

import os
import random
import secrets
import sys
import zlib

import numpy as np
import pytest

VARIABLE = "TEST_SEED"
"""In the environment, which the processes that share the files inherit."""


def pytest_configure() -> None:
    os.environ.setdefault(VARIABLE, secrets.token_hex(6))


def pytest_report_header() -> str:
    return f"draws: {VARIABLE}={os.environ[VARIABLE]} repeats them"


def pytest_collectstart(collector: pytest.Collector) -> None:
    seed_generators(collector.nodeid)


@pytest.hookimpl(tryfirst=True)  # before fixtures draw
def pytest_runtest_setup(item: pytest.Item) -> None:
    seed_generators(item.nodeid)


def seed_generators(name: str) -> None:
    """Seed the global generators for what has this name."""
    import torch  # not before tests/conftest.py has prepared the process for it

    seed = zlib.crc32(f"{os.environ[VARIABLE]} {name}".encode())
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if "hypothesis" in sys.modules:  # as soon as a file is collected that uses it
        sys.modules["hypothesis"].core.global_force_seed = seed
