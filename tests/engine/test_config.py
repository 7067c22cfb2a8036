"""From what was asked for to what that comes to."""

import pytest

from engine.config import (
    EngineConfig,
    MachineFacts,
    ModelFacts,
    check_quantization,
    resolve,
)
from engine.errors import ModelLoadError

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


@pytest.mark.parametrize(
    ("wanted", "device", "is_packed", "has_native"),
    [
        ("gguf", "cpu", True, True),
        ("gguf", "cuda", True, False),
        ("int8", "cpu", False, True),
        ("none", "cpu", True, False),
    ],
)
def test_linear_layers_are_kept_as_asked(wanted, device, is_packed, has_native):
    check_quantization(wanted, device, is_packed=is_packed, has_native=has_native)
    machine = MachineFacts(device=device, num_cores=2, free_memory_bytes=1 << 30)
    assert resolve(EngineConfig(quantization=wanted), MODEL, machine).quantization == wanted


@pytest.mark.parametrize(
    ("wanted", "device", "is_packed", "has_native", "reason"),
    [
        ("gguf", "cpu", False, True, "no weights packed"),
        ("gguf", "cpu", True, False, "C[+][+] operations"),
        ("int8", "cpu", True, False, "C[+][+] operations"),
        ("int8", "cuda", True, True, "CPUs only"),
    ],
)
def test_what_cannot_be_kept_as_asked_is_an_error(wanted, device, is_packed, has_native, reason):
    with pytest.raises(ModelLoadError, match=f"quantization {wanted}.*{reason}"):
        check_quantization(wanted, device, is_packed=is_packed, has_native=has_native)
