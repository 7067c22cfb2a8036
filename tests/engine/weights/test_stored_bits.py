"""Bits of a checkpoint's weights, from its headers."""

import json

import pytest
import structlog

from engine.contract.settings import EngineConfig
from engine.llm.start.loading import load_engine
from engine.quantization.format import TensorHeader
from engine.weights.source import Checkpoint
from engine.weights.stored_bits import stored_bits
from tests.helpers.host import Host
from tests.helpers.quantization.gptq_checkpoints import Layout, write_gptq


def headers(**types):
    """The layers of blocks: name → (type, rows), with 256 columns each."""
    found = {
        f"model.layers.0.{name}.weight": TensorHeader((rows, 256), type)
        for name, (type, rows) in types.items()
    }
    found["model.layers.0.norm.weight"] = TensorHeader((256,), "F32")
    found["model.embed_tokens.weight"] = TensorHeader((9999, 256), "Q8_0")
    return found


@pytest.mark.parametrize(
    ("found", "stated", "wanted"),
    [
        (headers(q=("Q4_0", 8)), {}, 4.5),
        (headers(q=("Q2_K", 8), k=("Q3_K", 24)), {}, (2.625 + 3 * 3.4375) / 4),
        (headers(q=("IQ2_XXS", 8)), {}, 2.0625),
        (headers(q=("BF16", 8)), {}, 16.0),
        (headers(q=("I32", 8)), {"bits": 3}, 3.0),
        (headers(q=("I32", 8)), {"w_bit": 4}, 4.0),
        (headers(q=("U8", 8)), {}, None),
        ({}, {}, None),
    ],
)
def test_the_mean_over_the_blocks_layers(found, stated, wanted):
    assert stored_bits(found, stated) == wanted


@pytest.mark.parametrize("bits", [3, 4])
def test_few_bits_are_warned_of_when_they_are_loaded(tiny_llama, tmp_path, bits):
    vocab_size = json.loads((tiny_llama() / "config.json").read_text())["vocab_size"]
    original = tiny_llama(vocab_size=-(-vocab_size // 32) * 32)
    packed, _ = write_gptq(original, tmp_path, Layout(bits=bits))
    config = EngineConfig(device="cpu", dtype="float32", num_threads=1, num_kv_blocks=64)
    with structlog.testing.capture_logs() as logs:
        load_engine(Checkpoint("folder", packed, "m"), "m", config, Host())
    warned = [line for line in logs if "fewer than 4 bits" in line["event"]]
    assert [line["bits"] for line in warned] == ([3.0] if bits == 3 else [])
    assert all("tandem perplexity" in line["event"] for line in warned)
