"""Model folders whose sizes contradict their weights: refused with a reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.errors import InsufficientMemory, ModelLoadError
from engine.llm import loading
from engine.weights import decoder
from engine.weights.source import Checkpoint


class Host:
    def report(self, *args: Any, **fields: Any) -> None:
        pass

    def reserve(self, device: str, purpose: str, num_bytes: int, capacity_bytes: int) -> int:
        return capacity_bytes


INTENT = EngineConfig(device="cpu", num_kv_blocks=8, num_threads=1, quantization="none")


def test_sizes_that_no_memory_holds(tiny_llama: Callable[..., Path]) -> None:
    """Where the system lends out memory that it does not have, the shapes are what is wrong."""
    folder = tiny_llama()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 2**31 - 1}))
    with pytest.raises(ModelLoadError, match=r"than there is|has shape"):
        loading.load_engine(Checkpoint("folder", folder, "m"), "m", INTENT, Host())


def test_an_allocation_that_fails_is_no_fault_of_ours(
    tiny_llama: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(decoder, "create_model", fail)
    with pytest.raises(InsufficientMemory, match="sizes in the model's configuration"):
        loading.load_engine(Checkpoint("folder", tiny_llama(), "m"), "m", INTENT, Host())
