"""From what was asked for to what that comes to."""

import pytest

from engine.config import EngineConfig, MachineFacts, ModelFacts, resolve

MODEL = ModelFacts(max_position_embeddings=64, kv_bytes_per_token=8, weight_bytes=1000)


@pytest.mark.parametrize(
    ("asked", "device", "is_async"),
    [
        ("auto", "cpu", False),
        ("auto", "cuda", True),
        ("on", "cpu", True),
        ("off", "cuda", False),
    ],
)
def test_scheduling_is_asynchronous_where_there_is_something_to_overlap(asked, device, is_async):
    machine = MachineFacts(device=device, num_cores=2, free_memory_bytes=1 << 30)
    assert (
        resolve(EngineConfig(async_scheduling=asked), MODEL, machine).async_scheduling == is_async
    )


@pytest.mark.parametrize("asked", [True, False])
def test_graphs_need_a_gpu(asked):
    for device in ("cpu", "cuda"):
        machine = MachineFacts(device=device, num_cores=2, free_memory_bytes=1 << 30)
        resolved = resolve(EngineConfig(cuda_graphs=asked), MODEL, machine)
        assert resolved.cuda_graphs == (asked and device == "cuda")
