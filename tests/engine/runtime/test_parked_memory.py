"""The memory of tensors in a file: freed meanwhile, and the same bits afterwards."""

import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.runtime.huge_pages import lazy_zeros, use_huge_pages
from engine.runtime.memory import private_bytes
from engine.runtime.parked_memory import ParkedMemory

MIB = 1 << 20


@pytest.fixture
def tensors():
    """Tensors of all sorts, of 48 MiB at least, and copies of them."""
    rng = random.Random()
    pool = torch.frombuffer(lazy_zeros(32 * MIB), dtype=torch.int16)
    for _ in range(9):
        first = rng.randrange(len(pool) - MIB)
        pool[first : first + rng.randrange(MIB)] = rng.randrange(1, 1 << 15)
    weights = [torch.randn(rng.randrange(MIB, 3 * MIB)) for _ in range(8)]
    views = [pool[99:], weights[0].view(torch.uint8)[5:]]
    return [pool, *views, torch.nn.Parameter(weights[1]), *weights]


def test_memory_is_free_while_it_is_parked_and_the_same_afterwards(tensors, tmp_path):
    use_huge_pages()  # which gives parts of a tensor's pages other flags
    expected = [(one.data_ptr(), one.sum(dtype=torch.float64).item()) for one in tensors]
    copies = [one.clone() for one in tensors[2:]]
    written = [(tensors[0] != 0).nonzero().flatten().clone(), tensors[0][tensors[0] != 0]]
    before = private_bytes()
    parked = ParkedMemory(tmp_path, 1 << 30)
    assert 40 * MIB < parked.num_bytes < before
    assert private_bytes() < before - 0.9 * parked.num_bytes
    assert not os.listdir(tmp_path), "the file has no name"
    parked.restore()
    assert private_bytes() < before + 16 * MIB, "empty pages stay away"
    assert expected == [(one.data_ptr(), one.sum(dtype=torch.float64).item()) for one in tensors]
    assert all(map(torch.equal, tensors[2:], copies))
    assert torch.equal(tensors[0][written[0]], written[1])


@pytest.mark.parametrize("fault", ["limit", "folder", "memory", "write"])
def test_nothing_changes_if_the_file_is_impossible(tensors, tmp_path, monkeypatch, fault):
    def write(file, data, offset, own=os.pwrite):
        return own(file, data[:-1], offset)

    before = [one.sum(dtype=torch.float64).item() for one in tensors]
    if fault == "write":
        monkeypatch.setattr(os, "pwrite", write)
    folder = {"folder": Path("/proc"), "memory": Path("/dev/shm")}.get(fault, tmp_path)
    most = MIB if fault == "limit" else 1 << 30
    with pytest.raises(OSError):
        ParkedMemory(folder, most)
    assert before == [one.sum(dtype=torch.float64).item() for one in tensors]


def test_a_mapped_file_leaves_memory_and_is_read_again(tmp_path):
    size = 24 * MIB
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(size))
    clean, written = (torch.from_numpy(np.memmap(path, np.uint8, "c")) for _ in range(2))
    written[0] = 255 - written[0]
    first, checks = int(written[0]), [one.sum().item() for one in (clean, written)]
    before = _mapped_bytes()
    parked = ParkedMemory(tmp_path, 1 << 30)
    assert _mapped_bytes() < before - 0.9 * size
    parked.restore()
    assert checks == [one.sum().item() for one in (clean, written)]
    assert int(written[0]) == first, "what was written is not in the file"


def _mapped_bytes():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssFile:\s+(\d+)", status)[1]) << 10
