"""Checkpoint layouts of 4-bit weights, packed here as the tools that write them do."""

import pytest
import torch

from kernels import linear_w4a16
from kernels.linear_w4a16.layouts import from_awq, gptq_zeros, pack, unpack
from kernels.linear_w4a16.reference import dequantize


def integers(rows, columns):
    return torch.randint(16, (rows, columns), dtype=torch.int32)


def packed_along_outputs(q, order):
    """`AutoAWQ`: nibble i of an int32 is the output `order[i]` of its eight; GPTQ: in order."""
    packed = torch.zeros(q.shape[0], q.shape[1] // 8, dtype=torch.int32)
    for column in range(packed.shape[1]):
        for nibble in range(8):
            packed[:, column] |= q[:, column * 8 + order[nibble]] << (nibble * 4)
    return packed


def test_gptq_layout_is_eight_inputs_to_an_int32():
    q = integers(16, 5)
    expected = torch.zeros(2, 5, dtype=torch.int32)
    for row in range(16):
        expected[row // 8] |= q[row] << (row % 8 * 4)
    assert torch.equal(pack(q), expected)
    assert torch.equal(unpack(expected), q)


def test_awq_becomes_the_canonical_layout():
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    q, zeros = integers(64, 24), integers(2, 24)
    scales = torch.rand(2, 24)
    qweight, found_zeros = from_awq(
        packed_along_outputs(q, order), packed_along_outputs(zeros, order)
    )
    assert torch.equal(unpack(qweight), q)
    assert torch.equal(found_zeros, zeros.to(torch.uint8))
    x = torch.randn(3, 64)
    weight = (q - zeros.repeat_interleave(32, 0)) * scales.repeat_interleave(32, 0)
    found = linear_w4a16(x, qweight, scales, found_zeros, 32)
    assert torch.allclose(found, x @ weight, atol=1e-4)


@pytest.mark.parametrize("minus_one", [True, False])
def test_gptq_zero_points_of_both_versions(minus_one):
    zeros = integers(3, 16)
    zeros[0, :2] = torch.tensor([0, 15])
    stored = (zeros - 1) & 15 if minus_one else zeros
    packed = packed_along_outputs(stored, range(8))
    assert torch.equal(gptq_zeros(packed, minus_one=minus_one), zeros.to(torch.uint8))


def test_act_order_is_a_permutation_of_the_inputs():
    """Taking the inputs in the order of their groups gives the plain case."""
    q, scales = integers(64, 8), torch.rand(4, 8)
    g_idx = (torch.arange(64, dtype=torch.int32) // 16)[torch.randperm(64)]
    order = g_idx.argsort(stable=True)
    shuffled = dequantize(pack(q), scales, None, 16, g_idx)
    plain = dequantize(pack(q[order]), scales, None, 16, None)
    assert torch.equal(shuffled[order], plain)
