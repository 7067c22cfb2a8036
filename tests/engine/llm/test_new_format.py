"""What a new format needs to be served: its module and a row of the table."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import ModelLoadError
from engine.models.registry import create_model
from engine.weights.loader import iter_weights, load_model_config
from engine.weights.source import Checkpoint
from kernels import PackedWeight
from tests.helpers.llm.packed_texts import plan_of
from tests.helpers.quantization import toy_format


@pytest.fixture
def toy_model(tiny_llama, tmp_path, monkeypatch):
    """A random model in the toy format, embedding and all, with the weights that it stands for."""
    toy_format.register(monkeypatch)
    folder = tiny_llama(attention_bias=True)
    tensors, plain = {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        layer, _, kind = name.rpartition(".")
        plain[name] = tensor
        if kind == "weight" and layer.endswith(("_proj", "embed_tokens")):
            made, plain[name] = toy_format.toy(tensor)
            tensors |= {f"{layer}.{own}": value for own, value in made.items()}
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "toy"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, plain


def test_a_format_is_its_module_and_a_row(toy_model, engines):
    folder, _ = toy_model
    engine = engines.make(folder)
    assert engine._executor._config.quantization == "toy"
    request = engines.request("1", [3, 4, 5], max_tokens=8, ignore_eos=True, logprobs=0)
    (found,) = engines.run(engine, [request]).values()
    twin = engines.make(folder, quantization="none")
    (wanted,) = engines.run(twin, [request]).values()
    assert found.token_ids == wanted.token_ids
    for ours, theirs in zip(found.logprobs, wanted.logprobs, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)


def test_its_memory_is_planned(toy_model):
    folder, plain = toy_model
    plan = plan_of(folder)
    numbers = {name: t.numel() for name, t in plain.items()}
    packed = sum(n for name, n in numbers.items() if name.endswith("_proj.weight"))
    assert plan.num_bytes(2) == packed + 2 * (sum(numbers.values()) - packed)


def test_what_another_kind_of_checkpoint_has_cannot_be_asked_for(toy_model):
    folder, _ = toy_model
    with pytest.raises(ModelLoadError, match="no weights packed as in GGUF files"):
        plan_of(folder, quantization="gguf")


def test_what_is_kept_plain_equals_what_it_stands_for(toy_model):
    folder, plain = toy_model
    checkpoint = Checkpoint("folder", folder, "m")
    config = load_model_config(checkpoint)
    plan = plan_of(folder, quantization="none")
    model = create_model(config, dtype=torch.float32, linear_method=plan.method_for)
    assert model.load_weights(iter_weights(checkpoint, config, plan.packed)) == []
    found = model.model.layers[1].mlp.down_proj._parts[0][1].weight
    unpacked = found.unpack() if isinstance(found, PackedWeight) else found
    assert torch.equal(unpacked, plain["model.layers.1.mlp.down_proj.weight"])
    assert torch.equal(model.model.embed_tokens.weight, plain["model.embed_tokens.weight"])
