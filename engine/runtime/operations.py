"""The C++ operations, ready before a model needs them."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from engine.host import Host
from engine.types import Phase
from kernels import native

_REPORT_S = 0.5
_EARLY = 0.15
"""A smaller share says little of how long the rest will take."""


def build_operations(host: Host) -> None:
    """Have them ready, which takes a while once per machine."""
    if native.is_built():
        native.library()
        return
    with _told(host):
        native.library()


@contextmanager
def _told(host: Host) -> Iterator[None]:
    """Tell how far the build is, whichever process does it."""
    share_built, done = native.share_built(), threading.Event()
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
    """Until all is built: by how fast it went since `first`, or where that is too early to say by
    what it takes elsewhere."""
    if share - first >= _EARLY:
        return elapsed_s * (1 - share) / (share - first)
    return max(0.0, native.BUILD_CORE_S * (1 - first) / (os.cpu_count() or 1) - elapsed_s)


def in_words(seconds: float) -> str:
    """Rounded as an estimate should be."""
    if seconds < 10:
        return "a few seconds"
    return f"about {5 * round(seconds / 5)} s" if seconds < 90 else f"{round(seconds / 60)} minutes"
