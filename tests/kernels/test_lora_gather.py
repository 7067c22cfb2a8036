"""Rows with different adapters do not touch each other, to the bit."""

import dataclasses
import random

import pytest
import torch

from kernels import LoraShard, lora_gather, native
from kernels.lora_gather import chunk_bytes, num_chunks, pack, pack_each
from kernels.lora_gather.packed import unpack

NUM_ROWS = 70
"""More than the rows for which a program sums one part of K only."""


def updates(name, inputs, rows):
    """What the rows become when they are alone."""
    y = inputs["y"][rows].clone()
    one = inputs | {"y": y, "x": inputs["x"][rows], "adapter_ids": inputs["adapter_ids"][rows]}
    lora_gather.implementations()[name].function(**one)
    return y


@pytest.fixture
def inputs(request):
    device, _, packed = request.param.partition(" ")
    sizes = {"rows": NUM_ROWS, "outputs": 40, "inputs": 1100, "more": ((133, 5),)}
    case = dataclasses.replace(lora_gather.cases.CASES[0], adapters=5, packed=bool(packed), **sizes)
    return lora_gather.cases.make_inputs(case, torch.bfloat16, torch.device(device))


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("cpu", "cpu"),
        ("cpu", "cpu packed"),
        ("triton", "cpu"),
        pytest.param("triton", "cuda", marks=pytest.mark.gpu),
    ],
    indirect=["inputs"],
)
def test_rows_do_not_depend_on_who_shares_the_launch(name, inputs, interpreted):
    whole = updates(name, inputs, slice(0, NUM_ROWS))
    assert not torch.equal(whole, inputs["y"])
    for rows in (slice(0, 1), slice(3, 20), slice(0, 64), slice(40, 41)):
        assert torch.equal(updates(name, inputs, rows), whole[rows])
    # Threads share the work of a single adapter in another way.
    rows = (inputs["adapter_ids"] == 0).nonzero().flatten()[:4]
    one = inputs | {"shards": inputs["shards"][:1]}
    assert torch.equal(updates(name, one, rows)[:, :40], whole[rows][:, :40])
    order = torch.randperm(NUM_ROWS, device=whole.device)
    assert torch.equal(updates(name, inputs, order), whole[order])


@pytest.mark.parametrize("inputs", ["cpu"], indirect=True)
@pytest.mark.parametrize("name", list(lora_gather.implementations()))
def test_rows_without_an_adapter_stay(name, inputs, interpreted):
    inputs["adapter_ids"][::2] = -1
    inputs["x"][::2] = torch.nan
    found = updates(name, inputs, slice(0, NUM_ROWS))
    assert torch.equal(found[::2], inputs["y"][::2])
    assert found.isfinite().all()


def test_integers_meet_packed_numbers_exactly():
    """An input alone is no more than 16 bits, nor is what A makes of it."""
    ranks, inputs, outputs = random.choice([(1, 7, 5), (16, 131, 100), (20, 64, 576), (8, 576, 33)])
    a, b = (torch.randint(-127, 128, (2, ranks, size)).float() for size in (inputs, outputs))
    a[..., ::64], b[:] = 127, b.sign() * 127  # steps are powers of two, then
    x = torch.zeros(9, inputs)
    x[torch.arange(9), torch.randint(inputs, (9,))] = torch.randint(-8, 9, (9,)).float()
    ids = torch.randint(-1, 2, (9,), dtype=torch.int32)
    scales = torch.tensor([0.5, 2.0])
    y, expected = torch.zeros(9, outputs), torch.zeros(9, outputs, dtype=torch.float64)
    for row, adapter in enumerate(ids.tolist()):
        if adapter >= 0:
            inner = a[adapter].double() @ x[row].double()
            expected[row] = scales[adapter] * (inner @ b[adapter].double())
    shard = LoraShard(0, outputs, *pack(a, b), scales)
    lora_gather.implementations()["cpu"].function(y, x, [shard], ids)
    assert torch.equal(y.double(), expected)


@pytest.mark.parametrize("length", [1, 15, 63, 64, 65, 576])
@pytest.mark.parametrize("ranks", [1, 7, 8, 20])
def test_packed_numbers_are_within_half_a_step(ranks, length):
    a, b = torch.randn(3, ranks, length), torch.randn(3, ranks, length)
    a[1, :, : length // 2] = 0
    b[1] *= torch.rand(ranks, length).lt(0.2)
    packed = pack(a, b)
    for one in packed:
        assert one.dtype is torch.uint8
        assert one.shape == (3, num_chunks(ranks), chunk_bytes(length))
    found_a, found_b = unpack(*packed, length, length)
    exponent = torch.frexp(b.abs().amax(-1, keepdim=True)).exponent
    a, b = torch.ldexp(a, exponent), torch.ldexp(b, -exponent)
    assert not found_a[:, ranks:].any() and not found_b[:, ranks:].any()
    half_a_step = 1.01 / 254  # steps are bf16
    for first in range(0, length, 64):
        group, its = a[..., first : first + 64], found_a[:, :ranks, first : first + 64]
        assert ((group - its).abs() <= half_a_step * group.abs().amax(-1, keepdim=True)).all()
    for chunk in range(0, ranks, 8):
        for first in range(0, length, 8):
            where = slice(None), slice(chunk, min(chunk + 8, ranks)), slice(first, first + 8)
            group, its = b[where], found_b[where]
            largest = group.abs().amax((-2, -1), keepdim=True)
            assert ((group - its).abs() <= half_a_step * largest).all()


def test_ranks_of_all_sizes_share_steps():
    """Where one side is large and the other small, as where nothing is."""
    sizes = 10.0 ** torch.empty(2, 16, 1).uniform_(-15, 15)
    a, b = torch.randn(2, 16, 100) / sizes, torch.randn(2, 16, 60) * sizes
    found_a, found_b = unpack(*pack(a, b), 100, 60)
    expected = a.mT.double() @ b.double()
    assert (found_a.mT.double() @ found_b.double() - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("size", [1e-45, 1e-43, 1e-20, 1e38])
def test_numbers_of_any_size_stay_finite(size):
    a, b = torch.full((1, 70), 1.0), torch.full((1, 70), size)
    for pair in ((a, b), (b, a), (b, b), (a * 0, b)):
        assert all(found.isfinite().all() for found in unpack(*pack(*pair), 70, 70))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_of_an_adapter_are_packed_alike(dtype):
    """Bit for bit as one by one, whatever the sizes of matrices and numbers."""

    def matrix(ranks, length):
        kind = random.randrange(5)
        sizes = torch.empty(ranks, 1 if kind < 2 else length).uniform_(-40, 37)
        numbers = torch.randn(ranks, length) * (10.0**sizes if kind < 3 else float(kind > 3))
        numbers = numbers.to(dtype)
        return torch.where(numbers.isfinite(), numbers, 1)

    pairs = []
    for _ in range(40):
        ranks = random.choice([1, 7, 8, 9, 16, 20, 256])
        inputs, outputs = (random.choice([1, 15, 16, 63, 64, 65, 131, 576]) for _ in range(2))
        pairs.append((matrix(ranks, inputs), matrix(ranks, outputs)))
    for pair, packed in zip(pairs, pack_each(pairs), strict=True):
        for found, expected in zip(packed, pack(*pair), strict=True):
            assert torch.equal(found, expected)


def test_where_nothing_is_compiled_they_are_packed_one_by_one(monkeypatch):
    pairs = [(torch.randn(5, 40), torch.randn(5, 70))]
    expected = pack_each(pairs)
    monkeypatch.setattr(native, "library", lambda: None)
    assert all(map(torch.equal, *expected, *pack_each(pairs)))
