"""Decodes latents into pictures, in a thread beside the denoising loop."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from engine.contract.examination import Examined
from engine.contract.pixels import Pixels
from engine.runtime.fault import Unusable

Work = Callable[[], Pixels | Examined]


@dataclass(frozen=True, slots=True)
class Decoded:
    """The result of a piece of work: a picture, or the exception that ended it."""

    key: tuple[int, int]
    picture: Pixels | Examined | None
    error: Exception | None
    elapsed_s: float


def finite(values: torch.Tensor, what: str) -> torch.Tensor:
    """Return the values if all are numbers; other values would give a black or noisy picture.

    Raises:
        Unusable: some are infinite or not numbers.
    """
    if not bool(torch.isfinite(values).all()):
        raise Unusable(f"the model produced {what} with values that are not finite numbers")
    return values


class DecodeThread:
    """Runs pieces of work one after the other; the engine's thread collects the results.

    A key is (drawing id, preview index or -1 for the result). On a CPU the thread uses one core
    while the denoiser works, which keeps the others, and otherwise all: decoding a lone picture
    takes as long as several steps. Results do not depend on the number of threads.

    Attributes:
        is_alone: whether nothing else computes; changes take effect within a piece of work.
    """

    def __init__(self) -> None:
        self.is_alone = False
        self._most_threads = torch.get_num_threads()
        self._inbox: queue.SimpleQueue[tuple[tuple[int, int], Work] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Decoded] = queue.SimpleQueue()
        self._pending = 0
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    @property
    def num_pending(self) -> int:
        """The number of submitted pieces that are not collected yet."""
        return self._pending

    def submit(self, key: tuple[int, int], work: Work) -> None:
        self._pending += 1
        self._inbox.put((key, work))

    def collect(self, wait_s: float = 0.0) -> list[Decoded]:
        """The finished results; waits up to `wait_s` for the first."""
        results: list[Decoded] = []
        try:
            results.append(self._done.get(block=wait_s > 0, timeout=wait_s or None))
            while True:
                results.append(self._done.get_nowait())
        except queue.Empty:
            pass
        self._pending -= len(results)
        return results

    def close(self) -> None:
        """Finish queued work and end the thread."""
        self._inbox.put(None)
        self._thread.join()

    def _num_threads(self) -> int:
        return self._most_threads if self.is_alone else 1

    def _run(self) -> None:
        while (item := self._inbox.get()) is not None:
            key, work = item
            started_s = time.perf_counter()
            picture: Pixels | Examined | None = None
            error: Exception | None = None
            try:
                with torch.inference_mode(), _Threads(self._num_threads):
                    picture = work()
            except Exception as failure:
                error = failure
            self._done.put(Decoded(key, picture, error, time.perf_counter() - started_s))


class _Threads(TorchFunctionMode):
    """Within it, each call of PyTorch's takes as many threads as `num_threads` says by then."""

    def __init__(self, num_threads: Callable[[], int]) -> None:
        super().__init__()
        self._num_threads = num_threads
        self._used = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        threads = self._num_threads()
        if threads != self._used:
            self._used = threads
            torch.set_num_threads(threads)
        return func(*args, **(kwargs or {}))
