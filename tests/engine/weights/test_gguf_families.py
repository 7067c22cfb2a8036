"""GGUF files of families whose tensors llama.cpp's converter changes, beside their checkpoints."""

import json
import random
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from engine.contract.resolved_config import MachineFacts
from engine.contract.settings import EngineConfig
from engine.errors import ModelLoadError
from engine.models.registry import create_model
from engine.weights.loader import iter_weights, load_model_config
from engine.weights.weight_plan import plan_weights
from tests.helpers.models.checkpoints import in_folder, in_gguf, logits
from tests.helpers.models.gguf_converter import CONVERSIONS, convert, write_text_model
from tests.helpers.models.tiny_pairs import run_alone


@pytest.fixture(params=CONVERSIONS)
def family(request):
    return str(request.param)


@pytest.fixture
def folder(family, request):
    make = request.getfixturevalue(f"tiny_{family}")
    return make(seed=random.randrange(1 << 16), **CONVERSIONS[family].sizes)


def test_folder_and_gguf_give_the_same_logits(folder, family):
    both = in_folder(folder), in_gguf(convert(folder, family))
    config = load_model_config(both[0])
    text = [random.randrange(config.vocab_size) for _ in range(70)]
    expected, found = (logits(one, text) for one in both)
    error = (found - expected).abs().max() / expected.abs().max()
    assert error < 2e-5, f"{error}, text {text}"
    assert torch.isfinite(found).all()


def random_text(checkpoint):
    vocab_size = load_model_config(checkpoint).vocab_size
    return [random.randrange(vocab_size) for _ in range(40)]


def packed_logits(checkpoint, text):
    """The logits with weights packed as in the file, and the names of those methods."""
    config = load_model_config(checkpoint)
    machine = MachineFacts(device="cpu", free_memory_bytes=1 << 34, num_cores=1)
    intent = EngineConfig(device="cpu", dtype="float32", quantization="gguf")
    plan = plan_weights(checkpoint, config, intent, machine)
    model = create_model(config, dtype=torch.float32, linear_method=plan.method_for)
    assert model.load_weights(iter_weights(checkpoint, config, plan.packed)) == []
    return run_alone(model, config, text, [len(text)]), plan


@pytest.mark.parametrize(
    ("family", "quant"), [("gpt_oss", "MXFP4"), ("qwen3_5", "Q8_0"), ("qwen2_moe", "Q8_0")]
)
def test_packed_weights_give_the_logits_of_unpacked_ones(family, quant, request):
    """Biases of packed layers are plain, and rows are packed in the converter's order."""
    sizes = CONVERSIONS[family].sizes | {"linear_value_head_dim": 32, "hidden_size": 64}
    folder = request.getfixturevalue(f"tiny_{family}")(seed=random.randrange(1 << 16), **sizes)
    checkpoint = in_gguf(convert(folder, family, quant=gguf.GGMLQuantizationType[quant]))
    text = random_text(checkpoint)
    found, plan = packed_logits(checkpoint, text)
    expected = logits(checkpoint, text)
    assert len(plan.layers) > 20
    assert (found - expected).abs().max() < 1e-3 * expected.abs().max()


def test_layers_that_predict_further_tokens_are_left_out(tiny_glm4_moe):
    folder = tiny_glm4_moe()
    expected = in_gguf(convert(folder, "glm4_moe"))
    text = random_text(expected)
    plain = logits(expected, text)
    drafting = convert(
        folder,
        "glm4_moe",
        extra={
            "blk.3.attn_norm.weight": np.ones(64, np.float32),
            "blk.3.nextn.eh_proj.weight": np.ones((64, 128), np.float32),
        },
        glm4moe__block_count=4,
        glm4moe__nextn_predict_layers=1,
    )
    assert torch.equal(logits(in_gguf(drafting), text), plain)


def test_experts_with_gates_and_ups_in_one_tensor(tiny_qwen2_moe):
    folder = tiny_qwen2_moe()
    path = convert(folder, "qwen2_moe")
    text = random_text(in_gguf(path))
    expected = logits(in_gguf(path), text)
    fused = convert(folder, "qwen2_moe", fuses_experts=True)
    assert torch.equal(logits(in_gguf(fused), text), expected)


def test_old_files_of_qwen3_next_have_the_projections_of_the_checkpoint(tiny_qwen3_next):
    own = CONVERSIONS["qwen3_next"]

    def old(name, weight, config):
        if name.endswith(".in_proj_qkvz.weight"):
            yield f"blk.{name.split('.')[2]}.ssm_in.weight", weight
        else:
            yield from own.change(name, weight, config)

    folder = tiny_qwen3_next(**own.sizes)
    config = json.loads((folder / "config.json").read_text())
    text = random_text(in_folder(folder))
    expected = logits(in_folder(folder), text)
    path = write_text_model(
        folder, replace(own, change=old), config, load_file(folder / "model.safetensors")
    )
    assert (logits(in_gguf(path), text) - expected).abs().max() < 2e-5 * expected.abs().max()


def test_a_number_of_layers_that_no_model_has(tiny_glm4_moe):
    path = convert(tiny_glm4_moe(), "glm4_moe", glm4moe__leading_dense_block_count=1 << 30)
    with pytest.raises(ModelLoadError, match="first_k_dense_replace is 1073741824"):
        load_model_config(in_gguf(path))
