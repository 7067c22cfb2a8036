"""GGUF blocks against the `gguf` package, which reads them as llama.cpp does."""

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize as expected_weights
from gguf.quants import quantize

from kernels import GGUFType, fields_apart, linear_gguf
from kernels.linear_gguf.cases import random_weight
from kernels.linear_gguf.dequantize import dequantize
from kernels.linear_gguf.fields import fields_together
from kernels.linear_gguf.quant_type import BLOCKS, row_bytes

QUANTIZABLE = [kind for kind in GGUFType if kind < GGUFType.Q2_K]
"""What the package can write; it reads all of them."""


@pytest.mark.parametrize("kind", GGUFType, ids=lambda kind: kind.name)
def test_dequantisation_is_that_of_gguf_bit_for_bit(kind):
    packed = random_weight(kind, 33, 1024)
    expected = expected_weights(packed.numpy(), gguf.GGMLQuantizationType(kind))
    assert np.array_equal(dequantize(packed, kind).numpy(), expected)
    assert expected.std() > 0.5 / 32


@pytest.mark.parametrize("kind", QUANTIZABLE, ids=lambda kind: kind.name)
def test_what_gguf_quantised_comes_back(kind):
    weight = torch.randn(9, 96)
    packed = torch.from_numpy(quantize(weight.numpy(), gguf.GGMLQuantizationType(kind)))
    assert packed.shape[1] == row_bytes(kind, 96)
    found = dequantize(packed, kind)
    expected = expected_weights(packed.numpy(), gguf.GGMLQuantizationType(kind))
    assert np.array_equal(found.numpy(), expected)
    assert torch.corrcoef(torch.stack([found.flatten(), weight.flatten()]))[0, 1] > 0.99


@pytest.mark.parametrize("kind", GGUFType, ids=lambda kind: kind.name)
def test_blocks_have_the_sizes_of_ggml(kind):
    sizes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    assert (BLOCKS[kind].num_weights, BLOCKS[kind].num_bytes) == sizes
    assert gguf.GGMLQuantizationType(kind).name == kind.name


@pytest.mark.parametrize("kind", GGUFType, ids=lambda kind: kind.name)
def test_fields_lie_apart_each_at_a_multiple_of_its_size(kind):
    block = BLOCKS[kind]
    assert sorted(byte for first, size in block.fields for byte in range(first, first + size)) == (
        list(range(block.num_bytes))
    )
    start = 0
    for _, size in block.fields:
        assert start % (size & -size) == 0
        start += size
    rows = random_weight(kind, 5, 768)
    apart = fields_apart(rows, kind)
    (first, size), num_blocks = block.fields[0], 768 // block.num_weights
    codes = rows.view(5, num_blocks, -1)[:, :, first : first + size]
    assert torch.equal(apart[:, : num_blocks * size].reshape(codes.shape), codes)
    assert torch.equal(fields_together(apart, kind), rows)


def test_half_a_block_is_no_row():
    with pytest.raises(ValueError, match="cannot be divided into Q4_K blocks"):
        row_bytes(GGUFType.Q4_K, 128)


def test_int8_activations_round_what_is_multiplied():
    """Elements at a half go to the even neighbour; the largest one of 32 sets the step."""
    weight = torch.from_numpy(
        quantize(np.eye(32, dtype=np.float32), gguf.GGMLQuantizationType.Q8_0)
    )
    weight = fields_apart(weight, GGUFType.Q8_0)
    x = torch.zeros(1, 32)
    x[0, :5] = torch.tensor([127.0, 0.5, 1.5, -2.5, 3.25])
    found = linear_gguf(x, weight, GGUFType.Q8_0, int8_activations=True)
    expected = torch.tensor([127.0, 0.0, 2.0, -2.0, 3.0])
    # The identity's own scale, 1 / 127 in fp16, is not exact.
    assert torch.allclose(found[0, :5], expected, rtol=1e-3, atol=1e-3)
    assert not found[0, 5:].any()
