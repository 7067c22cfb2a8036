"""Formats that are made of plain weights when they are loaded."""

import bitsandbytes.functional as bnb
import gguf
import numpy as np
import pytest
import torch
from torch import nn

from engine.models.layers.embedding import LmHead, TokenEmbedding
from engine.models.layers.weight_slots import WeightOptions
from engine.models.loading import Loader
from engine.quantization.format import TensorHeader
from engine.quantization.four_bit_blocks import rounded_to_4_bits
from engine.quantization.int4_groups import takes_panels
from engine.quantization.plan import made_at_load
from engine.quantization.registry import load_format
from engine.quantization.rounded import rounded
from kernels import GGUFType
from kernels.linear_gguf.dequantize import dequantize
from kernels.linear_panels import cases
from tests.helpers.quantization.format_layers import assert_product, assert_rows_alike, filled

NAMES = ["int8-weights", "int4", "bnb-nf4", "bnb-fp4", "bnb-int8"]
SHARDS = {"q": 96, "k": 32}
SIZE = 192


def what_is_kept(weight, name):
    """The numbers that a format keeps of a weight, by other code than ours where there is some."""
    if name in ("int8-weights", "int4"):
        kind = gguf.GGMLQuantizationType["Q8_0" if name == "int8-weights" else "Q4_1"]
        made = gguf.quants.quantize(weight.float().numpy(), kind)
        return torch.from_numpy(gguf.quants.dequantize(made, kind))
    if name == "bnb-int8":
        codes, scales, _ = bnb.int8_vectorwise_quant(weight.float().clone())
        return codes.float() * (scales / 127)[:, None]
    packed, state = bnb.quantize_4bit(weight.float(), quant_type=name.removeprefix("bnb-"))
    return bnb.dequantize_4bit(packed, state)


def drawn(num_rows):
    """Random weights without numbers that lie between two codes of 8 bits and may go to either."""
    weight = torch.randn(num_rows, SIZE) / 14
    codes = weight * (127 / weight.abs().amax(1, keepdim=True))
    return weight.where((codes.frac().abs() - 0.5).abs() > 1e-3, 0.0)


def made(name, dtype=torch.float32, bias=True):
    weights = {shard: drawn(outputs) for shard, outputs in SHARDS.items()}
    tensors = {f"a.{shard}.weight": weight for shard, weight in weights.items()}
    if bias:
        tensors |= {f"a.{shard}.bias": torch.randn(len(w)) for shard, w in weights.items()}
    method = load_format(name).method_for(96, SIZE)
    layer = filled(tensors, weights, {f"a.{shard}": method for shard in SHARDS}, dtype)
    return layer, tensors, torch.cat([what_is_kept(w, name) for w in weights.values()])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_are_those_of_what_is_kept(name, dtype):
    layer, tensors, kept = made(name, dtype)
    assert_product(layer, tensors, kept, dtype, cases.TOLERANCE[dtype])


needs_panels = pytest.mark.skipif(not takes_panels(), reason="no C++ compiler")


@needs_panels
@pytest.mark.parametrize("name", NAMES)
def test_a_row_has_the_same_bits_in_any_batch(name):
    assert_rows_alike(lambda dtype: made(name, dtype)[0], SIZE)


@needs_panels
@pytest.mark.parametrize("name", NAMES)
def test_memory_is_what_is_stated(name):
    layer, _, _ = made(name)
    ((method, state),) = layer._parts
    panels = state.panels if hasattr(state, "panels") else state.state.panels
    assert panels.data.nbytes == method.num_bytes(128, SIZE, 2)
    assert panels.data.nbytes * 8 == 128 * SIZE * method.bits_per_weight(2)


@pytest.mark.parametrize("numbers", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_4_bits_are_bitsandbytes_bit_for_bit(numbers, dtype):
    weight = (torch.randn(37, 128) * torch.rand(37, 1)).to(dtype)
    weight[3, :64] = 0
    packed, absmax = rounded_to_4_bits(weight, numbers, 64)
    theirs, state = bnb.quantize_4bit(weight, quant_type=numbers, blocksize=64)
    assert torch.equal(absmax, state.absmax)
    assert torch.equal(packed, theirs.flatten())


@pytest.mark.parametrize("quant_type", [GGUFType.Q8_0, GGUFType.Q4_1])
def test_blocks_are_those_of_the_gguf_package(quant_type):
    weight = torch.randn(37, 96) * torch.rand(37, 1)
    weight[3, :32] = 0
    weight[4, :32] = 0.5
    wanted = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType(quant_type))
    found = rounded(weight, quant_type)
    np.testing.assert_array_equal(found.numpy(), wanted)
    error = (dequantize(found, quant_type) - weight).abs().max()
    assert error < (0.05 if quant_type == GGUFType.Q8_0 else 0.3)


@pytest.mark.parametrize("name", NAMES)
def test_sizes_that_do_not_divide_stay_plain(name):
    assert load_format(name).method_for(64, 48) is None


def test_the_output_layer_loses_least():
    headers = {
        f"{layer}.weight": TensorHeader((64, 64), "BF16")
        for layer in ("model.layers.0.mlp.up_proj", "lm_head")
    }
    kept = {name: made_at_load(name, headers) for name in (*NAMES, "int8")}
    for name, layers in kept.items():
        assert ("lm_head" in layers) is not name.startswith("bnb")
        assert "model.layers.0.mlp.up_proj" in layers
    assert kept["int4"]["lm_head"].method.quant_type is GGUFType.Q8_0
    assert kept["int4"]["model.layers.0.mlp.up_proj"].method.quant_type is GGUFType.Q4_1


@pytest.mark.parametrize("name", ["int8-weights", "int4"])
def test_a_tied_output_layer_is_made_of_the_embedding(name):
    weight = torch.randn(40, 64) / 8
    model = nn.Module()
    model.embed = TokenEmbedding(40, 64)
    model.head = LmHead(model.embed, tied=True)
    method = load_format(name).output_method_for(40, 64)
    how = {"dtype": torch.float32, "device": torch.device("cpu")}
    options = WeightOptions(**how, linear_method={"head": method}.get)
    Loader(model, options).load([("embed.weight", weight)])
    x = torch.randn(3, 64)
    wanted = x @ what_is_kept(weight, "int8-weights").T
    torch.testing.assert_close(model.head(x), wanted, atol=1e-4, rtol=0)
    assert torch.equal(model.embed(torch.tensor([7])), weight[7:8])
