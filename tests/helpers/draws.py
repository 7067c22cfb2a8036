"""Seeds all random draws of a run: with a fresh seed, or with TEST_SEED from the environment.

The global generators of `random`, NumPy and torch are seeded for each test, and for each collected
file, from the run's seed and the test's name. So a test draws the same numbers alone and after any
other test. Tests draw from these generators, or seed others from them. Hypothesis has its own
generator, which starts from the same seed.
"""

import os
import random
import secrets
import sys
import zlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import pytest

VARIABLE = "TEST_SEED"
"""The environment variable, which the processes that share the files inherit."""
T = TypeVar("T")


def pytest_configure() -> None:
    os.environ.setdefault(VARIABLE, secrets.token_hex(6))


def pytest_report_header() -> str:
    return f"draws: {VARIABLE}={os.environ[VARIABLE]} repeats them"


def pytest_collectstart(collector: pytest.Collector) -> None:
    seed_generators(collector.nodeid)


@pytest.hookimpl(tryfirst=True)  # before fixtures draw
def pytest_runtest_setup(item: pytest.Item) -> None:
    seed_generators(item.nodeid)


def runs_all() -> bool:
    """Whether this run leaves out no cases."""
    return "ALL_CASES" in os.environ


def some(values: Sequence[T], number: int) -> list[T]:
    """Draw some of a test's cases while files are collected; ALL_CASES=1 gives all of them. For
    whole servers, where a quicker test runs each of the cases."""
    return [*values] if runs_all() else random.sample(values, number)


def seed_generators(name: str) -> None:
    """Seed the global generators for the test or file of this name."""
    import torch  # not before tests/conftest.py has prepared the process for it

    seed = zlib.crc32(f"{os.environ[VARIABLE]} {name}".encode())
    random.seed(seed)
    np.random.seed(seed)
    # `torch.manual_seed` keeps a traceback for each kind of device that is not there.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)
    if "hypothesis" in sys.modules:  # once a collected file uses it
        sys.modules["hypothesis"].core.global_force_seed = seed
