"""Copies of adapters in the host's memory: which are kept, and what they may take."""

import torch

from engine.lora.copies import Copies
from engine.lora.peft_files import Adapter, Update
from tests.helpers.adapters.peft_adapters import Host


def adapter(rank):
    return Adapter({"q": Update(torch.zeros(rank, 8), torch.zeros(rank, 8), rank, 1.0)})


BYTES = adapter(1).num_bytes


def test_those_used_least_lately_go_first():
    host = Host()
    copies = Copies(host, 1 << 30)
    for key in "abc":
        copies.keep(key, adapter(2), 6 * BYTES)
    assert copies.get("a") is not None  # used last now
    copies.keep("d", adapter(1), 6 * BYTES)
    kept = {key for key in "abcd" if copies.get(key) is not None}
    assert kept == {"a", "c", "d"}
    assert copies.num_bytes == sum(host.lent.values()) == 5 * BYTES
    copies.shrink(5 * BYTES)
    assert copies.num_bytes == 5 * BYTES
    copies.drop("c")
    copies.drop("unknown")
    assert copies.num_bytes == sum(host.lent.values()) == 3 * BYTES
    copies.shrink(0)
    assert not copies.num_bytes and not host.lent


def test_one_that_has_no_room_drives_nobody_out():
    host = Host(capacity=3 * BYTES)
    copies = Copies(host, 1 << 30)
    copies.keep("a", first := adapter(2), 4 * BYTES)
    copies.keep("a", adapter(2), 4 * BYTES)
    copies.keep("b", adapter(5), 4 * BYTES)  # more than all may have
    copies.keep("c", adapter(2), None)  # more than there is
    assert copies.get("a") is first
    assert copies.get("b") is None and copies.get("c") is None
    assert sum(host.lent.values()) == 2 * BYTES
