"""Where the exam runs: on a GPU, or on CPU tensors that Triton's interpreted kernels take."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch

from engine.llm.runner.cuda_recorder import CudaRecorder
from kernels import _triton, native


@dataclass(frozen=True, slots=True)
class Place:
    """The device under examination."""

    is_rehearsal: bool = False

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.is_rehearsal else "cuda")

    @contextlib.contextmanager
    def examined(self) -> Iterator[None]:
        """In this context a GPU's kernels run. In a rehearsal CPU tensors pass for a GPU's: Triton
        takes them, the C++ operations do not exist, and steps are recorded as on a GPU."""
        if not self.is_rehearsal:
            yield
            return
        with contextlib.ExitStack() as stack:
            for target, name, value in _PRETENCES:
                stack.enter_context(patch.object(target, name, value))
            for path, value in _ENGINE_PRETENCES:
                if path.rpartition(".")[0] in sys.modules:  # stages of kernels have no engine
                    stack.enter_context(patch(path, value))
            yield


def launches(*tensors: torch.Tensor) -> bool:
    return True


def refuses(*tensors: torch.Tensor) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class StandInRecording:
    """A recording that runs again. Its result is at one place, as a graph's is."""

    run: Callable[[], torch.Tensor]
    output: torch.Tensor

    def replay(self) -> torch.Tensor:
        return self.output.copy_(self.run())


class StandInRecorder:
    """A `CudaRecorder` without CUDA."""

    is_cheap = False
    padded = CudaRecorder.padded
    padded_with_prompts = CudaRecorder.padded_with_prompts

    def record(self, run: Callable[[], torch.Tensor]) -> StandInRecording:
        run()
        return StandInRecording(run, run().clone())


def stand_in_recorder(device: torch.device) -> StandInRecorder:
    return StandInRecorder()


_PRETENCES: tuple[tuple[Any, str, Any], ...] = (
    (_triton, "runs_on", launches),
    (native, "runs_on", refuses),
    (native, "library", lambda: None),
)
_ENGINE_PRETENCES: tuple[tuple[str, Any], ...] = (
    ("engine.llm.runner.runner_factory._recorder", stand_in_recorder),
    ("engine.llm.start.sizing.check_kv_cache_dtype", lambda config, widest_head: None),
    ("engine.llm.start.loading.build_operations", lambda host: None),
)
