"""Makes the C++ operations available before a model needs them."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from engine.contract.host import Host
from engine.contract.status import Phase
from kernels import building, native

_REPORT_S = 0.5
_EARLY = 0.15
"""The share of the build below which the speed so far says little about the rest."""


def build_operations(host: Host) -> None:
    """Build the operations if necessary, which takes a while once per machine."""
    if native.is_built():
        native.library()
        return
    with _told(host):
        native.library()


@contextmanager
def _told(host: Host) -> Iterator[None]:
    """Report the progress of the build, whichever process does it."""
    share_built, done = building.share_built(), threading.Event()
    first, begun_s = share_built(), time.monotonic()

    def tell() -> None:
        while not done.is_set():
            share = share_built()
            left_s = estimated_s(first, share, time.monotonic() - begun_s)
            host.report(Phase.LOADING, share, f"compiling CPU operations, {in_words(left_s)} left")
            done.wait(_REPORT_S)

    teller = threading.Thread(target=tell, name="build-progress", daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


def estimated_s(first: float, share: float, elapsed_s: float) -> float:
    """Estimate the time until all is built: by the speed since `first`, or where it is too early
    for that, by the usual time of a build."""
    if share - first >= _EARLY:
        return elapsed_s * (1 - share) / (share - first)
    return max(0.0, building.BUILD_CORE_S * (1 - first) / (os.cpu_count() or 1) - elapsed_s)


def in_words(seconds: float) -> str:
    """Put an estimate into words, rounded accordingly."""
    if seconds < 10:
        return "a few seconds"
    return f"about {5 * round(seconds / 5)} s" if seconds < 90 else f"{round(seconds / 60)} minutes"
