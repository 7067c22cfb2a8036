from random import randint

import numpy as np
import pytest
import torch

from engine.contract.kv_layout import KvShape, LayerGroup
from engine.contract.kv_numbers import KvNumbers
from engine.llm.runner import kv_storage
from engine.llm.runner.kv_storage import KvStorage

CPU = torch.device("cpu")


def make_storage(
    num_blocks=8, dtype=torch.bfloat16, groups=((0, 1, 2),), shapes=None, block_size=4
):
    shapes = shapes or [KvShape(2, 8)] * len(groups)
    return KvStorage(
        num_blocks=num_blocks,
        layer_groups=[
            LayerGroup(tuple(layers), None, shape)
            for layers, shape in zip(groups, shapes, strict=True)
        ],
        block_size=block_size,
        dtype=dtype,
        device=CPU,
    )


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_layers_are_views_of_one_pool():
    storage = make_storage()
    assert [tuple(layer.shape) for layer in storage.layers] == [(8, 2, 2, 4, 8)] * 3
    storage.layers[1][5] = 7.0
    layers = storage._pool[5].view(3, 2 * 2 * 4 * 8)
    assert storage._pool.count_nonzero() == layers[1].count_nonzero() == 2 * 2 * 4 * 8


def test_groups_of_layers_share_the_memory_of_a_block():
    storage = make_storage(groups=[(2, 5), (0, 1), (3,), (4,)])
    assert storage.group_of_layer == [1, 1, 0, 2, 3, 0]
    layers = storage._pool.view(8, 2, 2 * 2 * 4 * 8)
    for layer, at in enumerate([0, 1, 0, 0, 0, 1]):
        assert storage.layers[layer].data_ptr() == layers[:, at].data_ptr(), layer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8, torch.float8_e4m3fn])
def test_groups_of_several_shapes_share_the_memory_of_a_block(dtype):
    """A block is as large as its largest group, and no layer of a group overlaps another."""
    shapes = [KvShape(randint(1, 4), 4 * randint(1, 4), randint(1, 2)) for _ in range(3)]
    groups = [range(randint(1, 3)) for _ in shapes]
    for at, layers in enumerate(groups[1:], 1):
        first = groups[at - 1][-1] + 1
        groups[at] = range(first, first + len(layers))
    storage = make_storage(dtype=dtype, groups=groups, shapes=shapes, block_size=randint(1, 5))
    kept = KvNumbers({torch.bfloat16: "bfloat16", torch.int8: "int8"}.get(dtype, "fp8"))
    block_size = storage.layers[0].shape[3]
    sizes = [
        kept.bytes_per_token(LayerGroup(tuple(layers), None, shape)) * block_size
        for layers, shape in zip(groups, shapes, strict=True)
    ]
    assert storage._block_bytes == max(sizes)
    for layers, (num_heads, head_dim, parts) in zip(groups, shapes, strict=True):
        for layer in layers:
            shape = (8, parts, num_heads, block_size, head_dim)
            assert tuple(storage.layers[layer].shape) == shape
            storage.layers[layer][3] = layer + 1
            if storage.scales[layer] is not None:
                storage.scales[layer][3] = layer + 1
        for layer in layers:
            assert (storage.layers[layer][3].float() == layer + 1).all()
            assert storage.scales[layer] is None or (storage.scales[layer][3] == layer + 1).all()


def test_a_huge_pool_takes_memory_only_where_it_is_written():
    before = resident_bytes()
    storage = make_storage(1 << 16, groups=[range(8)], shapes=[KvShape(4, 64)], block_size=16)
    block_bytes = storage._block_bytes
    assert block_bytes == 2 * 8 * 4 * 16 * 64 * 2
    assert storage._pool.nbytes == 8 << 30
    for layer in storage.layers:
        layer[[3, 60000]] = 1.0
    storage.will_write(np.array([3, 60000]))
    assert storage.bytes_committed == 2 * block_bytes
    # Huge pages, where the system uses them, make the smallest unit 2 MiB.
    assert resident_bytes() - before < 2 * block_bytes + (8 << 20)


def test_memory_is_committed_ahead_of_the_blocks_that_steps_write(monkeypatch):
    """Half of what is committed ahead is always left, and never more than all of it."""
    ahead = 2 * randint(4, 16) << 20
    monkeypatch.setattr(kv_storage, "COMMITTED_AHEAD_BYTES", ahead)
    before = resident_bytes()
    storage = make_storage(1 << 10, groups=[range(8)], shapes=[KvShape(4, 64)], block_size=16)
    first, num_threads = 0, 0
    while first < 1 << 10:
        end = min(1 << 10, first + randint(1, 100))
        thread = storage.commit_ahead(np.array([0, *range(first, end)]))
        if thread is not None:
            thread.join()
            num_threads += 1
        storage._pool[first:end] = 1.0
        written = end * storage._block_bytes
        assert resident_bytes() - before >= min(written + ahead // 2, storage._pool.nbytes)
        assert resident_bytes() - before < written + ahead + (8 << 20)
        first = end
    assert num_threads <= 2 * storage._pool.nbytes / ahead + 1
    assert storage.bytes_committed == 0, "counts what requests wrote"


def test_memory_between_blocks_that_are_far_apart_is_not_committed():
    before = resident_bytes()
    storage = make_storage(1 << 16, groups=[range(8)], shapes=[KvShape(4, 64)], block_size=16)
    last = randint(1 << 12, 1 << 16) - 1
    for block_id in (0, last):
        thread = storage.commit_ahead(np.array([block_id]))
        if thread is not None:
            thread.join()
    assert resident_bytes() - before <= 2 * kv_storage.COMMITTED_AHEAD_BYTES + (8 << 20)
    assert storage.commit_ahead(np.array([], np.int64)) is None


def test_fresh_memory_is_zero():
    assert make_storage()._pool.count_nonzero() == 0


def test_committed_bytes_count_each_written_block_once():
    storage = make_storage()
    storage.will_write(np.array([2, 2, 2, 5]))
    storage.will_write(np.array([5]))
    assert storage.bytes_committed == 2 * storage._block_bytes
    storage.copy([(5, 1)])
    assert storage.bytes_committed == 3 * storage._block_bytes


def test_copies_are_of_all_layers_and_in_order():
    storage = make_storage(dtype=torch.float32)
    storage._pool.normal_()
    before = storage._pool.clone()
    storage.copy([(1, 2), (2, 3), (4, 4)])
    for destination, source in {2: 1, 3: 1, 4: 4, 1: 1, 5: 5}.items():
        assert torch.equal(storage._pool[destination], before[source])


def test_clearing_touches_only_what_was_written():
    storage = make_storage()
    storage._pool.fill_(torch.nan)
    storage.will_write(np.array([2]))
    storage.clear([2, 3])
    assert storage._pool[2].count_nonzero() == 0
    assert storage._pool[3].isnan().all()
    assert storage._pool[1].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype(dtype):
    storage = make_storage(1, dtype=dtype)
    assert storage.layers[0].dtype == dtype
    assert storage._block_bytes == 3 * 2 * 2 * 4 * 8 * dtype.itemsize
