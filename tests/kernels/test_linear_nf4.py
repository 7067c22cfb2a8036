"""NF4 weights against bitsandbytes, which writes them."""

import bitsandbytes.functional as bnb
import pytest
import torch

from kernels import linear_nf4
from kernels.linear_nf4.reference import dequantize, resolve_absmax
from kernels.shared.four_bit_numbers import FP4, NF4


@pytest.mark.parametrize("block_size", [64, 128])
@pytest.mark.parametrize("shape", [(24, 128), (10, 65), (3, 7)])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_dequantisation_is_that_of_bitsandbytes_bit_for_bit(shape, block_size, kind):
    packed, state = bnb.quantize_4bit(torch.randn(shape), blocksize=block_size, quant_type=kind)
    expected = bnb.dequantize_4bit(packed, state)
    found = dequantize(packed, state.absmax, block_size, shape, fp4=kind == "fp4")
    assert torch.equal(found, expected)
    assert torch.equal(state.code, torch.tensor(FP4 if kind == "fp4" else NF4))


def test_double_quantisation_is_undone():
    weight = torch.randn(64, 320) * torch.rand(64, 1)
    packed, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    assert state.absmax.dtype is torch.uint8
    nested = state.state2
    absmax = resolve_absmax(
        state.absmax, nested.absmax, nested.code, nested.blocksize, float(state.offset)
    )
    expected = bnb.dequantize_4bit(packed, state)
    assert torch.allclose(dequantize(packed, absmax, 64, (64, 320)), expected, rtol=1e-6, atol=0)
    x = torch.randn(3, 320)
    found = linear_nf4(x, packed, absmax, 64, (64, 320))
    assert torch.allclose(found, x @ expected.T, rtol=1e-4, atol=1e-4)
