"""Where adapters' files are."""

from functools import partial

from engine.contract.settings import EngineConfig
from engine.weights.adapter_source import resolve_adapter, with_adapters_here


def found(config, cache_dir):
    how = {"cache_dir": cache_dir, "offline": True, "on_progress": lambda fraction, line: None}
    return with_adapters_here(config, partial(resolve_adapter, **how))


def test_a_hub_id_that_cannot_be_had_costs_its_own_adapter(tmp_path):
    config = EngineConfig(lora=("near=./near", "far=org/far"), max_cpu_loras=5, max_loras=2)
    here, failed = found(config, tmp_path)
    assert (here.adapters, here.max_adapters) == ({"near": "./near"}, 5)
    assert list(failed) == ["far"]
    assert "offline mode is on" in failed["far"]
    near = EngineConfig(lora=("near=./near",))
    assert found(near, tmp_path) == (near, {})
