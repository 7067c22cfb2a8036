"""Threads for tokenising long texts, so that short texts and other streams are not delayed.

A text is tokenised part by part. Its next part queues behind the others' parts, so that long texts
share the threads fairly. When a client has disconnected, no further part of its text is begun.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from engine.errors import QueueFull

_RETRY_AFTER_S = 5
_MAX_THREADS = 4

T = TypeVar("T")


class EncodingPool:
    """Runs the work on long texts in threads. Event loop only.

    Args:
        max_texts: number of requests with long texts that may be here at once.
    """

    def __init__(self, max_texts: int) -> None:
        self._max_texts = max_texts
        self._num_texts = 0
        # At most half of the processors: the event loop and the workers need the others.
        num_threads = max(1, min(_MAX_THREADS, (os.cpu_count() or 1) // 2))
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="encode")

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place while a request's texts are processed.

        Raises:
            QueueFull: no place is free.
        """
        if self._num_texts >= self._max_texts:
            full = QueueFull(
                f"{self._num_texts} requests with long texts are being tokenised, which is the "
                "limit; try again later"
            )
            full.retry_after_s = _RETRY_AFTER_S
            raise full
        self._num_texts += 1
        try:
            yield
        finally:
            self._num_texts -= 1

    async def run(self, work: Callable[[], T]) -> T:
        """Do the work in a thread, unless the caller is cancelled before it begins."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """Begin nothing more. Idempotent."""
        self._threads.shutdown(wait=False, cancel_futures=True)
