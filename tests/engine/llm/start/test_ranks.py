"""Settings that do not go with several ranks: refused before anything is started."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.contract.resolved_config import MachineFacts
from engine.contract.settings import EngineConfig
from engine.errors import EngineError
from engine.llm.start.ranks import check_ranks
from engine.weights.loader import load_model_config
from engine.weights.source import Checkpoint

CPU = {"device": "cpu", "num_cores": 4, "free_memory_bytes": 1 << 30}


@pytest.mark.parametrize(
    ("machine", "settings", "reason"),
    [
        ({}, {"tensor_parallel_size": 5}, "a model may compute on 4 cores here"),
        ({"device": "cuda"}, {}, "a model on a GPU cannot be divided"),
        ({}, {"lora": ("a=folder",)}, "a model with LoRA adapters"),
        ({}, {"kv_store": "folder"}, "a kv_store"),
        ({}, {"kv_transfer": "127.0.0.1"}, "kv_transfer"),
        ({}, {"speculative_model": "m", "num_speculative_tokens": 4}, "a speculative_model"),
        ({}, {"async_scheduling": "on"}, "async_scheduling on"),
    ],
)
def test_what_ranks_cannot_share_is_refused(
    tiny_llama: Callable[..., Path], machine: dict[str, Any], settings: dict[str, Any], reason: str
) -> None:
    config = load_model_config(Checkpoint("folder", tiny_llama(), "m"))
    facts = MachineFacts(**(CPU | machine))
    with pytest.raises(EngineError, match=reason) as refused:
        check_ranks(config, EngineConfig(**({"tensor_parallel_size": 2} | settings)), facts)
    assert refused.value.param == "tensor_parallel_size"
    check_ranks(config, EngineConfig(**(settings | {"tensor_parallel_size": 1})), facts)
