"""A token's attention has the same bits alone, among others, in any chunk, and decoded."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from kernels import _triton
from kernels.paged_attention import PagedBatch, cases, reference, triton

BLOCK_SIZE = 16
DEVICES = [torch.device("cpu"), pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]


@dataclass(frozen=True)
class Setup:
    """A model's heads and the kind of its cache."""

    dtype: torch.dtype = torch.bfloat16
    num_heads: int = 3
    num_kv_heads: int = 1
    head_dim: int = 64
    kv_dtype: torch.dtype | None = None
    window: int | None = None
    soft_cap: float | None = None
    capability: int = 80
    """Whose tiles the interpreter uses."""


SETUPS = {
    "bf16": Setup(),
    "fp32": Setup(torch.float32, 2, 2, 16),
    "gemma": Setup(head_dim=40, num_heads=2, window=530, soft_cap=5.0),
    "int8": Setup(torch.float16, kv_dtype=torch.int8),
    "fp8": Setup(kv_dtype=torch.float8_e4m3fn),
    "fp8_sm_90": Setup(kv_dtype=torch.float8_e4m3fn, capability=90),
}


@pytest.fixture(params=SETUPS)
def setup(request):
    return SETUPS[request.param]


@pytest.fixture(params=DEVICES)
def sequences(request, setup, monkeypatch):
    if request.param.type == "cpu":
        monkeypatch.setattr(_triton, "capability", lambda device: setup.capability)
    return Sequences(setup, request.param, (600, 40, 1100))


class Sequences:
    """Queries and a filled cache; any part of them can be asked for."""

    def __init__(self, setup, device, lengths):
        self.setup, self.device = setup, device
        blocks = [-(-length // BLOCK_SIZE) for length in lengths]
        order = np.random.permutation(sum(blocks)).astype(np.int32)
        self.tables = np.split(order, np.cumsum(blocks)[:-1])
        heads = (setup.num_heads, setup.head_dim)
        self.q = [torch.randn(n, *heads, device=device).to(setup.dtype) for n in lengths]
        shape = (sum(blocks), 2, setup.num_kv_heads, BLOCK_SIZE, setup.head_dim)
        self.cache, self.scales = torch.randn(shape, device=device), None
        if setup.kv_dtype is None:
            self.cache = self.cache.to(setup.dtype)
        else:
            self.cache, self.scales = cases.quantised(self.cache, setup.kv_dtype)

    def attend(self, *parts, function=triton.paged_attention, recorded_for=None):
        """Parts are (sequence, first query, last query + 1); each one's rows come back.

        With `recorded_for` the host knows no context lengths, only that upper bound.
        """
        parts = sorted(parts, key=lambda part: (part[2] - part[1] > 1, -part[2]))
        num_queries = [last - first for _, first, last in parts]
        width = max(len(table) for table in self.tables)
        tables = np.stack([np.resize(self.tables[s], width) for s, _, _ in parts])
        batch = PagedBatch.from_host(
            tables,
            np.array([last for _, _, last in parts], dtype=np.int32),
            np.concatenate(([0], np.cumsum(num_queries))).astype(np.int32),
            num_queries.count(1),
            self.device,
        )
        if recorded_for is not None:
            bound = np.full(len(parts), recorded_for, dtype=np.int32)
            batch = dataclasses.replace(batch, host_context_lens=bound)
        found = function(
            torch.cat([self.q[s][first:last] for s, first, last in parts]),
            self.cache,
            batch,
            scale=self.setup.head_dim**-0.5,
            window=self.setup.window,
            soft_cap=self.setup.soft_cap,
            kv_scales=self.scales,
        )
        return dict(zip(parts, found.split(num_queries), strict=True))


def same(found, expected):
    """Whether two results have the same bits."""
    assert found.isfinite().all()
    return torch.equal(found, expected)


def test_a_decode_does_not_depend_on_its_neighbours(sequences):
    short, long = (1, 29, 30), (0, 599, 600)
    others = [(2, 1099, 1100), (2, 7, 8), (0, 512, 513), (1, 3, 30)]
    together = sequences.attend(short, long, *others)
    # Alone, the short one has a single split and skips the second launch.
    assert same(together[short], sequences.attend(short)[short])
    assert same(together[long], sequences.attend(long)[long])
    replayed = sequences.attend(short, long, recorded_for=2000)
    assert same(replayed[short], together[short])
    assert same(replayed[long], together[long])


def test_a_prompt_has_the_same_bits_in_any_chunks_and_decoded(sequences):
    whole = (0, 0, 600)
    expected = sequences.attend(whole)[whole]
    exact = sequences.attend(whole, function=reference.paged_attention)[whole]
    # The first tokens see few values, so outputs reach 4, where bf16 has steps of 1/32.
    torch.testing.assert_close(expected, exact, atol=1e-2, rtol=2**-6)
    for first, last in ((0, 37), (37, 38), (38, 513), (513, 600)):
        chunk = (0, first, last)
        beside = sequences.attend(chunk, (2, 530, 600), (1, 39, 40))[chunk]
        assert same(beside, expected[first:last])
    for position in (0, 63, 64, 511, 512, 575, 599):
        token = (0, position, position + 1)
        assert same(sequences.attend(token)[token], expected[position : position + 1])


def test_the_comparison_sees_another_order(sequences, monkeypatch):
    chunk = (0, 580, 600)
    expected = sequences.attend(chunk)[chunk]
    monkeypatch.setattr(triton, "SPLIT", 256)
    assert not same(sequences.attend(chunk)[chunk], expected)


def test_a_split_that_a_window_leaves_out_counts_for_nothing():
    for longest in (1, 511, 512, 513, 5000):
        for window in (1, 2, 3, 511, 512, 513, 514, 1024, 1025):
            first = max(longest - window, 0) // triton.SPLIT
            touched = -(-longest // triton.SPLIT) - first
            assert touched <= triton._num_splits(longest, window) <= touched + 1
