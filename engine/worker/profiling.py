"""Profiles the steps of a worker from an order to start until one to stop, and writes a trace that
Perfetto and TensorBoard show."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import structlog

from engine.contract.profiler_config import ProfilerConfig
from engine.errors import ModelLoadError

if TYPE_CHECKING:
    from torch.profiler import profile

T = TypeVar("T")

log = structlog.get_logger(__name__)


class StepProfiler:
    """Torch's profiler around steps. Loop thread only: the profiler ends in the thread in which it
    began.

    Args:
        name: what the files' names begin with.

    Raises:
        ModelLoadError: the folder cannot be made.
    """

    def __init__(self, config: ProfilerConfig, name: str) -> None:
        self._config = config
        self._folder = Path(config.torch_profiler_dir)
        self._name = re.sub(r"[^\w.-]", "_", name)
        self._running: profile | None = None
        self._num_steps = 0
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ModelLoadError(
                f"profiler_config: {self._folder.name!r} cannot be used as a folder: "
                f"{error.strerror}; name another torch_profiler_dir",
                param="profiler_config",
            ) from None

    def switch(self, *, on: bool) -> None:
        """Start or stop; does nothing if that is done already."""
        if on and self._running is None:
            self._start()
        elif not on and self._running is not None:
            self._write()

    def run(self, step: Callable[[], T]) -> T:
        """Run a step, which has an entry of its own in the trace: a recorded one may have no
        other."""
        if self._running is None:
            return step()
        from torch.profiler import record_function

        with record_function("step"):
            return step()

    def note_step(self) -> None:
        """Count a step, and write the trace if it was the last one."""
        if self._running is None:
            return
        self._num_steps += 1
        if self._num_steps >= self._config.max_iterations:
            self._write()

    def _start(self) -> None:
        import torch
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._num_steps = 0
        self._running = profile(
            activities=activities,
            record_shapes=self._config.torch_profiler_record_shapes,
            with_stack=self._config.torch_profiler_with_stack,
        )
        self._running.start()
        log.info("profiling started", max_steps=self._config.max_iterations)

    def _write(self) -> None:
        running, self._running = self._running, None
        assert running is not None
        ending = ".gz" if self._config.torch_profiler_use_gzip else ""
        path = self._folder / f"{self._name}.{time.time_ns()}.pt.trace.json{ending}"
        try:
            running.stop()
            running.export_chrome_trace(str(path))
        except Exception as error:  # nobody's request fails for it
            log.warning("a profile could not be written", error=str(error))
        else:
            log.info("profile written", file=str(path), steps=self._num_steps)
