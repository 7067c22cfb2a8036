"""Model folders whose sizes contradict their weights: refused with a reason."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.contract.knob import GIB
from engine.contract.resolved_config import MachineFacts
from engine.contract.settings import EngineConfig
from engine.errors import InsufficientMemory, ModelLoadError
from engine.llm.start import loading
from engine.weights import decoder
from engine.weights.source import Checkpoint
from tests.helpers.host import Host

INTENT = EngineConfig(device="cpu", num_kv_blocks=8, num_threads=1, quantization="none")


def test_sizes_that_no_memory_holds(tiny_llama: Callable[..., Path]) -> None:
    """Where the system lends out memory that it does not have, the shapes are what is wrong."""
    folder = tiny_llama()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 2**31 - 1}))
    with pytest.raises(ModelLoadError, match=r"than this machine has|has shape"):
        loading.load_engine(Checkpoint("folder", folder, "m"), "m", INTENT, Host())


def test_an_allocation_that_fails_is_no_fault_of_ours(
    tiny_llama: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(decoder, "create_model", fail)
    with pytest.raises(InsufficientMemory, match="sizes in the model's configuration"):
        loading.load_engine(Checkpoint("folder", tiny_llama(), "m"), "m", INTENT, Host())


@pytest.mark.parametrize("has_draft", [False, True])
def test_adapters_and_the_cache_share_what_is_left(
    tiny_llama: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, has_draft: bool
) -> None:
    """The cache is sized as if adapters had all that they may take, and beside steps and
    structures."""
    machine = MachineFacts(device="cpu", num_cores=1, free_memory_bytes=2 * GIB)
    monkeypatch.setattr(loading, "machine_facts", lambda device: machine)
    asked: dict[str, int] = {}

    class Asked(Exception):
        pass

    class Ledger(Host):
        def reserve(self, device: str, purpose: str, num_bytes: int, capacity_bytes: int) -> int:
            asked[purpose] = num_bytes
            if purpose == "KV cache":
                raise Asked
            return capacity_bytes - sum(asked.values())

    folder = tiny_llama()
    intent = replace(
        INTENT,
        num_kv_blocks=None,
        max_num_seqs=10_000,
        lora_memory_gib=1.5,
        speculative_model=str(folder) if has_draft else None,
        num_speculative_tokens=2 if has_draft else 0,
    )
    with pytest.raises(Asked):
        loading.load_engine(Checkpoint("folder", folder, "m"), "m", intent, Ledger())
    assert ("draft weights" in asked) == has_draft
    assert min(asked["steps"], asked["structures"]) > 0
    others = sum(asked.values()) - asked["KV cache"]
    left = machine.free_memory_bytes - others - int(1.5 * GIB)
    assert left // 4 < asked["KV cache"] <= left // 2, "half of it, where others share the memory"
