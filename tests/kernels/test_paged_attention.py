"""A token's attention has the same bits alone, among others, in any chunk, and decoded."""

import pytest
import torch

from kernels import _triton
from kernels.paged_attention import reference, triton
from tests.helpers.kernels.sequences import Sequences, Setup

DEVICES = [torch.device("cpu"), pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]
FEW_HEADS = {"num_heads": 3, "num_kv_heads": 1}
SETUPS = {
    "bf16": Setup(**FEW_HEADS),
    "fp32": Setup(torch.float32, 2, 2, 16),
    "gemma": Setup(head_dim=40, num_heads=2, num_kv_heads=1, window=530, soft_cap=5.0),
    "sinks": Setup(**FEW_HEADS, has_sinks=True),
    "int8": Setup(torch.float16, **FEW_HEADS, kv_dtype=torch.int8),
    "fp8": Setup(**FEW_HEADS, kv_dtype=torch.float8_e4m3fn),
    "fp8_sm_90": Setup(**FEW_HEADS, kv_dtype=torch.float8_e4m3fn, capability=90),
}


@pytest.fixture(params=SETUPS)
def setup(request):
    return SETUPS[request.param]


@pytest.fixture(params=DEVICES)
def sequences(request, setup, monkeypatch):
    if request.param.type == "cpu":
        monkeypatch.setattr(_triton, "capability", lambda device: setup.capability)
    lengths = (600, 40, 1100)
    return Sequences(setup, lengths, triton.paged_attention, request.param, spread=1.0)


def same(found, expected):
    """Whether two results have the same bits."""
    assert found.isfinite().all()
    return torch.equal(found, expected)


def test_a_decode_does_not_depend_on_its_neighbours(sequences):
    short, long = (1, 29, 30), (0, 599, 600)
    others = [(2, 1099, 1100), (2, 7, 8), (0, 512, 513), (1, 3, 30)]
    together = sequences.attend(short, long, *others)[:2]
    # Alone, the short one has a single split and skips the second launch.
    assert same(together[0], sequences.attend(short)[0])
    assert same(together[1], sequences.attend(long)[0])
    for replayed, rows in zip(
        sequences.attend(short, long, recorded_for=2000), together, strict=True
    ):
        assert same(replayed, rows)


def test_a_prompt_has_the_same_bits_in_any_chunks_and_decoded(sequences):
    whole = (0, 0, 600)
    (expected,) = sequences.attend(whole)
    (exact,) = sequences.attend(whole, run=reference.paged_attention)
    # The first tokens see few values, so outputs reach 4, where bf16 has steps of 1/32.
    torch.testing.assert_close(expected, exact, atol=1e-2, rtol=2**-6)
    for first, last in ((0, 37), (37, 38), (38, 513), (513, 600)):
        chunk = (0, first, last)
        beside = sequences.attend(chunk, (2, 530, 600), (1, 39, 40))[0]
        assert same(beside, expected[first:last])
    for position in (0, 63, 64, 511, 512, 575, 599):
        token = (0, position, position + 1)
        assert same(sequences.attend(token)[0], expected[position : position + 1])


def test_rows_that_see_each_other_have_the_same_bits_in_any_chunks(sequences):
    sequences.both_ways = [(20, 83), (505, 530)]
    whole = (0, 0, 600)
    (expected,) = sequences.attend(whole)
    (exact,) = sequences.attend(whole, run=reference.paged_attention)
    torch.testing.assert_close(expected, exact, atol=1e-2, rtol=2**-6)
    for first, last in ((0, 20), (20, 83), (82, 83), (83, 505), (505, 600), (510, 530)):
        (found,) = sequences.attend((0, first, last))
        assert same(found, expected[first:last])


def test_the_comparison_sees_another_order(sequences, monkeypatch):
    chunk = (0, 580, 600)
    (expected,) = sequences.attend(chunk)
    monkeypatch.setattr(triton, "SPLIT", 256)
    assert not same(sequences.attend(chunk)[0], expected)


def test_a_split_that_a_window_leaves_out_counts_for_nothing():
    for longest in (1, 511, 512, 513, 5000):
        for window in (1, 2, 3, 511, 512, 513, 514, 1024, 1025):
            first = max(longest - window, 0) // triton.SPLIT
            touched = -(-longest // triton.SPLIT) - first
            assert touched <= triton._num_splits(longest, window) <= touched + 1
