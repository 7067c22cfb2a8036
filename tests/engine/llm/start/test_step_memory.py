"""The memory that a GPU's steps are left, measured by a runner that pretends to take some."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from engine.contract.resolved_config import MachineFacts, ModelFacts
from engine.contract.settings import EngineConfig
from engine.errors import InsufficientMemory
from engine.llm.runner.step_graph import GraphSize
from engine.llm.start import sizing
from engine.llm.start.memory_plan import MemoryPlan
from engine.llm.start.sizing import measured
from engine.llm.start.step_memory import StepMemory, measure_step_memory
from tests.helpers.host import Host
from tests.helpers.llm.steps import resolved

CONFIG = resolved(device="cuda", max_num_seqs=8, max_num_batched_tokens=64)
MIB = 1 << 20
GIB = 1 << 30


class Gpu:
    """The memory of a GPU, and a runner on it: 3 MiB stay after the first step, a step takes 1 MiB
    per token while it runs, a graph 20 MiB and each further one 2."""

    def __init__(self, sizes=(), failure=None):
        self.graph_sizes = sizes
        self.failure = failure
        self.held, self.highest, self.in_graphs = 100 * MIB, 0, 0
        self.cached = 0
        self.has_run = False
        self.recorded = []

    def run_once(self, step):
        if not self.has_run:
            self.held += 3 * MIB
            self.has_run = True
        self.cached = max(self.cached, sum(text.num_tokens for text in step) * MIB)
        self.highest = max(self.highest, self.reserved())
        if self.failure is not None:
            raise self.failure

    def record(self, size):
        self.recorded.append(size)
        self.in_graphs += 2 * MIB if self.in_graphs else 20 * MIB
        return object()

    def settle(self):
        self.cached = 0
        self.highest = self.reserved()

    def reserved(self):
        return self.held + self.cached

    def peak(self):
        return self.highest

    def taken(self):
        return self.reserved() + self.in_graphs


SIZES = tuple(GraphSize(rows, 1024) for rows in (8, 4, 2, 1))


def test_a_step_is_measured_at_its_peak_without_what_stays():
    gpu = Gpu()
    found = measure_step_memory(gpu, gpu, CONFIG)
    assert found == StepMemory(activations=64 * MIB)
    assert found.total == 64 * MIB


def test_all_graphs_are_counted_by_the_first_and_one_more():
    gpu = Gpu(SIZES)
    found = measure_step_memory(gpu, gpu, CONFIG)
    assert gpu.recorded == list(SIZES[:2])
    assert found == StepMemory(64 * MIB, 20 * MIB, 2 * MIB, 4)
    assert found.total == (64 + 20 + 3 * 2) * MIB


def test_a_step_that_does_not_fit_says_what_to_lower():
    gpu = Gpu(failure=torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(InsufficientMemory, match=r"64 tokens.*lower max_num_batched_tokens"):
        measure_step_memory(gpu, gpu, CONFIG)


def test_other_failures_are_not_taken_for_a_lack_of_memory():
    gpu = Gpu(failure=RuntimeError("a kernel does not compile"))
    with pytest.raises(RuntimeError, match="does not compile"):
        measure_step_memory(gpu, gpu, CONFIG)


def memory_plan(**intent):
    return MemoryPlan(
        EngineConfig(max_num_batched_tokens=64, max_num_seqs=8, **intent),
        ModelFacts(max_position_embeddings=256, kv_bytes_per_token=1024, weight_bytes=GIB),
        MachineFacts(device="cuda", num_cores=2, free_memory_bytes=10 * GIB),
    )


@pytest.fixture
def gpu(monkeypatch):
    gpu = Gpu(SIZES)
    gpu.pools = []

    def create_runner(model, model_config, config, adapters):
        gpu.pools.append(config.num_kv_blocks)
        return gpu

    monkeypatch.setattr(sizing, "create_runner", create_runner)
    monkeypatch.setattr(sizing, "CudaMemory", lambda device: gpu)
    return gpu


def test_the_pool_leaves_steps_what_was_measured(gpu):
    host, plan = Host(), memory_plan()
    before, config = plan.resolved(), measured(None, SimpleNamespace(pictures=None), plan, host)
    assert gpu.pools == [1], "measured with next to no pool"
    assert host.reserved == [("cuda", "steps", 90 * MIB)]
    block_bytes = 16 * 1024
    assert before.num_kv_blocks == (9 * GIB - GIB) // block_bytes
    assert config.num_kv_blocks == (9 * GIB - GIB - 90 * MIB) // block_bytes


def test_a_pool_of_a_given_size_keeps_it(gpu):
    host, plan = Host(), memory_plan(num_kv_blocks=77)
    assert measured(None, SimpleNamespace(pictures=None), plan, host).num_kv_blocks == 77
    assert host.reserved == [("cuda", "steps", 90 * MIB)], "and what does not fit is refused"


def test_steps_that_leave_nothing_are_named_in_the_error():
    plan = memory_plan(gpu_memory_utilization=0.2)
    assert plan.resolved().num_kv_blocks > 0
    plan = replace(plan, model=replace(plan.model, step_bytes=GIB))
    with pytest.raises(InsufficientMemory, match=r"weights take 1.00 GiB and steps 1.00 GiB"):
        plan.resolved()
