"""Measures the GPU memory that steps take beside weights and KV, before the KV pool is sized.

A runner with a minimal KV pool runs the largest possible steps and records two graphs: the largest
one, whose memory all graphs share, and one more, to see what each adds. The pool then gets what is
left. Otherwise it would take the memory that the first long prompt needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from engine.contract.picture_facts import PictureFacts
from engine.contract.resolved_config import ResolvedConfig
from engine.errors import InsufficientMemory
from engine.llm.runner.step_graph import GraphSize
from engine.llm.runner.warm_up import WarmUpStep, largest_steps
from engine.runtime.device_memory import DeviceMemory
from engine.runtime.fault import is_out_of_memory

log = structlog.get_logger(__name__)


class Measurable(Protocol):
    """The part of a model runner that is measured."""

    def run_once(self, step: WarmUpStep) -> None:
        """Run a step that belongs to no request."""
        ...

    @property
    def graph_sizes(self) -> Sequence[GraphSize]:
        """All sizes that may be recorded, the largest first; empty if steps are not recorded."""
        ...

    def record(self, size: GraphSize) -> object:
        """Record a graph, which lives as long as the returned object."""
        ...


@dataclass(frozen=True, slots=True)
class StepMemory:
    """The memory that steps were measured to need, in bytes."""

    activations: int
    """The peak of the largest step, rounded up as the allocator rounds."""
    first_graph: int = 0
    further_graph: int = 0
    num_graphs: int = 0

    @property
    def total(self) -> int:
        """The memory of a step while all graphs are there."""
        further = max(0, self.num_graphs - 1) * self.further_graph
        return self.activations + self.first_graph + further


def measure_step_memory(
    runner: Measurable,
    memory: DeviceMemory,
    config: ResolvedConfig,
    pictures: PictureFacts | None = None,
) -> StepMemory:
    """Run the largest steps of this configuration and measure their memory.

    Args:
        pictures: how the model sees pictures; None if it takes none.

    Raises:
        InsufficientMemory: the steps do not fit even without a KV pool.
    """
    # First without measuring: what is loaded at its first use stays, and is not part of a step.
    _run_largest(runner, config, pictures)
    memory.settle()
    before = memory.reserved()
    _run_largest(runner, config, pictures)
    activations = max(0, memory.peak() - before)
    found = StepMemory(activations, *_graphs(runner, memory))
    log.info(
        "measured the largest step",
        activations_bytes=found.activations,
        first_graph_bytes=found.first_graph,
        further_graph_bytes=found.further_graph,
        num_graphs=found.num_graphs,
    )
    return found


def _run_largest(runner: Measurable, config: ResolvedConfig, pictures: PictureFacts | None) -> None:
    for step in largest_steps(config, pictures):
        try:
            runner.run_once(step)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise InsufficientMemory(
                f"a step of {sum(text.num_tokens for text in step)} tokens does not fit beside "
                f"the weights: lower max_num_batched_tokens or max_num_seqs, or use a smaller model"
            ) from error


def _graphs(runner: Measurable, memory: DeviceMemory) -> tuple[int, int, int]:
    """Measure the bytes of the first graph and of a further one. Also returns how many there may
    be."""
    sizes = runner.graph_sizes
    kept, taken = [], []
    for size in sizes[:2]:
        memory.settle()
        before = memory.taken()
        kept.append(runner.record(size))
        memory.settle()
        taken.append(max(0, memory.taken() - before))
    first, further = [*taken, 0, 0][:2]
    return first, further, len(sizes)
