"""Block hashes and the index over them."""

import random

import pytest

from engine.errors import InvariantViolation
from engine.llm.cache.prefix_cache import PrefixCache, chain_root, extend_chain

ROOT = chain_root(None, None)


def chain_of(token_ids: list[int], block_size: int = 4, root: bytes = ROOT) -> list[bytes]:
    return extend_chain([], root, token_ids, block_size)


def test_only_full_blocks_are_hashed() -> None:
    lengths = [len(chain_of(list(range(n)))) for n in (0, 1, 3, 4, 5, 7, 8, 9)]
    assert lengths == [0, 0, 0, 1, 1, 1, 2, 2]


def test_a_hash_covers_everything_before_it() -> None:
    left, right = chain_of([1, 2, 3, 4, 5, 6, 7, 8]), chain_of([9, 2, 3, 4, 5, 6, 7, 8])
    assert left[0] != right[0]
    assert left[1] != right[1], "equal blocks after different beginnings must differ"
    assert chain_of([1, 2, 3, 4, 0, 0, 0, 0])[0] == left[0]


def test_extending_equals_hashing_at_once() -> None:
    token_ids = [random.randrange(1 << 40) for _ in range(203)]
    for block_size in (1, 2, 5, 16):
        chain: list[bytes] = []
        for end in [*sorted(random.sample(range(204), 20)), 203]:
            extend_chain(chain, ROOT, token_ids[:end], block_size)
            assert len(chain) == end // block_size
        assert chain == chain_of(token_ids, block_size)


def test_ids_are_packed_without_ambiguity() -> None:
    blocks = [[1, 23], [12, 3], [123, 0], [0, 123], [1, 2], [2, 1], [256, 0], [0, 1], [1, 256]]
    hashes = {chain_of(block, 2)[0] for block in blocks}
    assert len(hashes) == len(blocks)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((None, None), ("", None)),
        ((None, None), ("None", None)),
        (("a", None), (None, "a")),
        (("a', 'b", "c"), ("a", "b', 'c")),
        (("\ud800", None), ("\ud801", None)),
        (("a", "b"), ("ab", None)),
    ],
)
def test_salt_and_adapter_start_different_chains(left: tuple, right: tuple) -> None:
    assert chain_root(*left) != chain_root(*right)
    assert chain_root(*left) == chain_root(*left)


def test_find_returns_the_longest_prefix() -> None:
    cache = PrefixCache(10)
    chain = chain_of(list(range(16)))
    for block_id, block_hash in zip((5, 6, 8), (chain[0], chain[1], chain[3]), strict=True):
        cache.register(block_id, block_hash)
    assert cache.find(chain) == [5, 6], "block 8 is unreachable without the third"
    assert cache.find(chain[1:]) == [6]
    assert cache.find([]) == []
    assert cache.find(chain_of([1, 2, 3, 4])) == []


def test_layer_groups_have_blocks_of_their_own() -> None:
    cache, (text,) = PrefixCache(9), chain_of([1, 2, 3, 4])
    cache.register(7, text, 0)
    assert not cache.has(text, 1)
    cache.register(8, text, 1)
    assert (cache.find([text], 0), cache.find([text], 1)) == ([7], [8])


def test_the_first_block_with_a_text_is_kept() -> None:
    cache = PrefixCache(10)
    [block_hash] = chain_of([1, 2, 3, 4])
    cache.register(1, block_hash)
    cache.register(2, block_hash)
    cache.register(1, block_hash)
    assert 1 in cache and 2 not in cache
    cache.forget(2)
    assert cache.find([block_hash]) == [1]
    cache.forget(1)
    assert cache.find([block_hash]) == []
    cache.register(2, block_hash)
    assert cache.find([block_hash]) == [2]
    cache.check_invariants()


def filled(max_idle: int, count: int) -> tuple[PrefixCache, list[bytes]]:
    cache = PrefixCache(max_idle)
    chain = chain_of(list(range(4 * count)))
    for block_id, block_hash in enumerate(chain):
        cache.register(block_id, block_hash)
    return cache, chain


def test_the_longest_idle_block_is_evicted_first() -> None:
    cache, _ = filled(10, 4)
    for block_id in (2, 0, 3, 1):
        assert cache.park(block_id) == []
    cache.revive(0)
    cache.park(0)
    assert list(cache.idle) == [2, 3, 1, 0]
    assert [cache.evict() for _ in range(4)] == [2, 3, 1, 0]
    assert not any(block_id in cache for block_id in range(4))
    with pytest.raises(InvariantViolation):
        cache.evict()


@pytest.mark.parametrize("max_idle", [0, 1, 2])
def test_idle_blocks_beyond_the_limit_are_dropped_oldest_first(max_idle: int) -> None:
    cache, chain = filled(max_idle, 3)
    dropped = [block_id for parked in (2, 1, 0) for block_id in cache.park(parked)]
    assert dropped == [2, 1, 0][: 3 - max_idle]
    assert cache.find(chain) == [0, 1, 2][:max_idle]
    cache.check_invariants()


def test_what_was_cleared_is_not_found_and_not_written() -> None:
    cache, chain = filled(10, 4)
    for block_id in (1, 3):
        cache.park(block_id)
    cache.pin(chain, 1, "client", 60)
    assert cache.clear() == [1, 3]
    assert cache.find(chain) == [] and not list(cache.idle)
    assert [block_id in cache for block_id in range(4)] == [True, False, True, False]
    cache.check_invariants()
    assert cache.park(0) == [0], "nobody holds it any more, and nobody finds it"
    cache.forget(2)
    assert not any(block_id in cache for block_id in range(4))
    cache.register(1, chain[0])
    assert cache.park(1) == [] and cache.find(chain) == [1]
    cache.check_invariants()


def test_check_notices_corruption() -> None:
    for corrupt in (
        lambda c: c._block_of.clear(),
        lambda c: c._key_of.update({9: (0, b"x")}),
        lambda c: c._idle.update({9: None}),
        lambda c: setattr(c, "_max_idle", 0),
    ):
        cache, _ = filled(10, 2)
        cache.park(0)
        cache.check_invariants()
        corrupt(cache)
        with pytest.raises(InvariantViolation):
            cache.check_invariants()


def test_pins_are_kept_longest_and_bounded() -> None:
    now = [100.0]
    cache = PrefixCache(16, clock=lambda: now[0])
    hashes = [b"%d" % number for number in range(16)]
    for block_id, block_hash in enumerate(hashes):
        cache.register(block_id, block_hash)
        assert cache.park(block_id) == []
    cache.pin(hashes[:6], 1, "greedy", 60.0)  # a quarter is four
    cache.pin([*hashes[5:10], b"unknown"], 1, "second", 5.0)
    cache.pin(hashes[10:], 1, "third", 60.0)
    pinned = [block_id for block_id in range(16) if cache.pinned_s(block_id)]
    assert pinned == [0, 1, 2, 3, 5, 6, 7, 8], "half are eight"
    cache.check_invariants()
    assert [cache.evict() for _ in range(3)] == [4, 9, 10]
    now[0] += 10.0
    assert [cache.evict() for _ in range(5)] == [11, 12, 13, 14, 15]
    assert [cache.evict() for _ in range(4)] == [5, 6, 7, 8], "these have expired"
    assert [cache.evict() for _ in range(4)] == [0, 1, 2, 3], "only pinned ones are left"
    cache.check_invariants()
