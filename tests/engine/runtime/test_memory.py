"""The memory account: who holds what, on which device, and what can still be had."""

import random

import pytest

from engine.errors import InsufficientMemory
from engine.runtime.memory import MIB, MemoryArbiter, available_host_memory


@pytest.fixture
def arbiter():
    arbiter = MemoryArbiter()
    arbiter.ensure_budget("cpu", 1000 * MIB)
    arbiter.ensure_budget("cuda", 500 * MIB)
    return arbiter


def test_devices_have_accounts_of_their_own(arbiter):
    arbiter.reserve("a", 0, "cpu", "weights", 900 * MIB)
    arbiter.reserve("a", 1, "cuda", "weights", 500 * MIB)
    assert (arbiter.free("cpu"), arbiter.free("cuda")) == (100 * MIB, 0)
    assert arbiter.free("cuda:1") == 0, "a device that nobody has looked at"


def test_a_refusal_says_who_holds_the_memory_and_takes_nothing(arbiter):
    arbiter.reserve("a", 0, "cpu", "weights", 600 * MIB)
    arbiter.reserve("b", 0, "cpu", "KV cache", 300 * MIB)
    with pytest.raises(InsufficientMemory) as caught:
        arbiter.reserve("b", 1, "cpu", "adapter", 101 * MIB)
    message = caught.value.message
    assert "b needs 101 MiB for adapter on cpu; 100 MiB are free" in message
    assert "in use: a weights 600 MiB, b KV cache 300 MiB" in message
    assert arbiter.free("cpu") == 100 * MIB


def test_what_is_given_back_can_be_had_again(arbiter):
    arbiter.reserve("a", 0, "cpu", "weights", 600 * MIB)
    arbiter.reserve("a", 1, "cpu", "adapter", 400 * MIB)
    arbiter.release("a", 1)
    arbiter.release("a", 1)
    arbiter.release("b", 0)
    assert (arbiter.held("cpu"), arbiter.held("cpu", "a")) == (600 * MIB, 600 * MIB)
    arbiter.reserve("b", 1, "cpu", "weights", 400 * MIB)
    arbiter.release_all("a")
    assert (arbiter.held("cpu", "a"), arbiter.free("cpu")) == (0, 600 * MIB)


def test_only_who_finds_a_device_untouched_says_how_much_there_is(arbiter):
    arbiter.reserve("a", 0, "cpu", "weights", 1)
    arbiter.ensure_budget("cpu", 5)
    assert arbiter.free("cpu") == 1000 * MIB - 1
    arbiter.release_all("a")
    arbiter.ensure_budget("cpu", 5)
    assert arbiter.free("cpu") == 5


def test_what_all_owners_share_is_taken_once(arbiter):
    arbiter.ensure_budget("cpu", 1000 * MIB, 100 * MIB)
    arbiter.reserve("a", 0, "cpu", "process", 300 * MIB)
    arbiter.ensure_budget("cpu", 1000 * MIB, 150 * MIB)
    arbiter.reserve("b", 0, "cpu", "process", 300 * MIB)
    arbiter.ensure_budget("cpu", 1000 * MIB, 50 * MIB)
    assert (arbiter.free("cpu"), arbiter.lendable("cpu")) == (250 * MIB, 850 * MIB)


def test_what_is_set_aside_goes_to_its_owner_alone(arbiter):
    arbiter.set_aside("a", "cpu", 700 * MIB)
    assert (arbiter.free("cpu"), arbiter.free("cpu", "a")) == (300 * MIB, 1000 * MIB)
    with pytest.raises(InsufficientMemory, match="in use: a start 700 MiB"):
        arbiter.reserve("b", 0, "cpu", "weights", 301 * MIB)
    arbiter.reserve("a", 0, "cpu", "weights", 500 * MIB)
    assert (arbiter.held("cpu", "a"), arbiter.free("cpu")) == (700 * MIB, 300 * MIB)
    arbiter.reserve("a", 1, "cpu", "KV cache", 400 * MIB)
    assert (arbiter.held("cpu", "a"), arbiter.free("cpu")) == (900 * MIB, 100 * MIB)
    arbiter.set_aside("b", "cpu", 100 * MIB)
    arbiter.end_aside("b")
    arbiter.set_aside("c", "cpu", 100 * MIB)
    arbiter.release_all("c")
    assert arbiter.free("cpu") == 100 * MIB


def test_random_traffic_keeps_the_account():
    arbiter = MemoryArbiter()
    arbiter.ensure_budget("cpu", 100)
    held, num_refused = {}, 0
    for id in range(2000):
        owner = random.choice("abc")
        if held and random.random() < 0.5:
            key = random.choice(list(held))
            arbiter.release(*key)
            del held[key]
        elif random.random() < 0.05:
            arbiter.release_all(owner)
            held = {key: n for key, n in held.items() if key[0] != owner}
        else:
            num_bytes = random.randrange(60)
            try:
                arbiter.reserve(owner, id, "cpu", "x", num_bytes)
                held[owner, id] = num_bytes
            except InsufficientMemory:
                num_refused += 1
                assert sum(held.values()) + num_bytes > 100
        assert arbiter.held("cpu") == sum(held.values()) <= 100
    assert num_refused > 0


def test_a_control_groups_limit_counts_without_files_that_are_merely_cached(tmp_path):
    def group(**files):
        for name, text in files.items():
            (tmp_path / f"memory.{name}").write_text(text)
        return available_host_memory(tmp_path)

    without = available_host_memory(tmp_path)
    assert without > 0
    assert group(max="5000\n", current="3000\n", stat="anon 1\ninactive_file 500\n") == 2500
    assert group(current="9000\n") == 0
    assert group(max="max\n") > 5000
