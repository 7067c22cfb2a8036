"""Adapters that come and go: their slots, their memory, and what is left of them."""

import json
import os
import shutil
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.contract.adapter_orders import AdapterOrder, AdapterReport
from engine.errors import (
    CorruptFile,
    InsufficientMemory,
    ModelConflict,
    ModelLoadError,
    TooManyAdapters,
    UnknownAdapter,
)
from engine.lora import arrays as arrays_module
from engine.lora import text_adapters
from engine.lora.file_parts import WEIGHTS
from engine.lora.peft_config import CONFIG
from engine.lora.peft_files import AdapterPlan
from engine.lora.slots import LoraSlots
from engine.lora.text_adapters import load_adapters
from engine.models.adapters import NO_ADAPTER
from engine.runtime.huge_pages import lazy_zeros
from tests.helpers.adapters.image_adapters import bring, settle, unload
from tests.helpers.adapters.image_adapters import load as ask
from tests.helpers.adapters.peft_adapters import Host, limits_of, load, write_adapter
from tests.helpers.models.tiny_pairs import create_pair

OPTIONS = {
    "a": {"r": 5, "rank_pattern": {"v_proj": 9}},
    "b": {"r": 12, "target_modules": ("k_proj", "o_proj", "up_proj")},
    "c": {"r": 3, "target_modules": ("q_proj", "k_proj")},
    "dora": {"r": 3, "target_modules": ("q_proj", "up_proj"), "use_dora": True},
}
ROWS = 7


@pytest.fixture(scope="module")
def model():
    return create_pair("Qwen2", 3)[0]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Adapters of different ranks and layers, by name."""
    found = {name: tmp_path_factory.mktemp(name) for name in OPTIONS}
    for seed, (name, folder) in enumerate(found.items()):
        write_adapter(create_pair("Qwen2", 3)[1], folder, seed, **OPTIONS[name])
    return found


def taken_bytes(table):
    """Of the arrays, what the adapters have that there is room for."""
    count = table._slots.room.num_slots
    total = 0
    for shards in table._slots._updates.values():
        for shard in shards:
            total += shard.a[:count].nbytes + shard.b[:count].nbytes
            if shard.gates is not None:
                total += shard.gates.less_one[: count + 1].nbytes + shard.gates.bias.nbytes
    tables = table._slots._tables.values()
    return total + sum(one.looked_up[:count].nbytes for one, _ in tables)


def updates(table, model, name):
    """What every layer adds to the same rows with that adapter."""
    slot = NO_ADAPTER if name is None else table.slot_of(table.key_of(name))
    slots = torch.full((ROWS,), slot, dtype=torch.int32)
    rows = table.of_rows(slots)
    found = {}
    for layer in table._layers:
        generator = torch.Generator().manual_seed(len(layer.path))
        x = torch.randn(ROWS, layer.in_features, generator=generator)
        y = torch.randn(
            ROWS, sum(shard.out_features for shard in layer.shards), generator=generator
        )
        rows.add(layer.path, x, y)
        found[layer.path] = y
    return found


def check_same(table, model, name, folder, **kept):
    """It is what it would be if it were the only one, bit for bit."""
    alone = updates(load(model, {name: folder}, **kept), model, name)
    here = updates(table, model, name)
    assert all(torch.equal(here[path], y) for path, y in alone.items())
    without = updates(table, model, None)
    assert any(not torch.equal(without[path], y) for path, y in alone.items())


def test_they_come_while_others_stay(model, folders):
    host = Host()
    table = load(model, {"a": folders["a"]}, host, room=3)
    version = table.version
    for name in ("b", "c", "dora"):
        slot = table.slot_of(table.key_of("a"))
        assert isinstance(ask(table, name, folders[name]), AdapterReport)
        assert table.slot_of(table.key_of("a")) == slot, "running requests have it"
    assert table.names == ("a", "b", "c", "dora")
    assert table.version > version, "the arrays are others"
    for name, folder in folders.items():
        check_same(table, model, name, folder)
    assert sum(host.lent.values()) == table.num_bytes


def test_in_8_bits(model, folders, tmp_path):
    """As they come and go; gates, output layers and what embeddings look up among them."""
    ends = {"r": 5, "target_modules": ("q_proj", "embed_tokens", "lm_head")}
    write_adapter(create_pair("Qwen2", 3)[1], tmp_path, 7, **ends)
    every = folders | {"ends": tmp_path}
    host = Host()
    table = load(model, {"a": every["a"]}, host, room=len(every) - 1, is_packed=True)
    for name in list(every)[1:]:
        assert isinstance(ask(table, name, every[name]), AdapterReport)
    plain = load(model, every)
    nothing = updates(plain, model, None)
    for name, folder in every.items():
        check_same(table, model, name, folder, is_packed=True)
        exact, rounded = updates(plain, model, name), updates(table, model, name)
        for path, y in exact.items():
            change, error = (y - nothing[path]).norm(), (rounded[path] - y).norm()
            # The largest of 64 numbers is 4 times their root mean square at the most likely, and
            # 8 times it at the very most: so 2% of each factor.
            assert error <= 0.04 * change
            assert error > 0 or not change
    assert table.num_bytes == taken_bytes(table)
    assert sum(host.lent.values()) == table.num_bytes
    assert table.num_bytes < 0.5 * plain.num_bytes, "in fp32"


def test_what_fits_is_put_in_place_of_what_has_gone(model, folders):
    table = load(model, {"a": folders["a"], "b": folders["b"]}, room=0)
    assert unload(table, "a") == [None]
    version, num_bytes = table.version, table.num_bytes
    assert isinstance(ask(table, "c", folders["c"]), AdapterReport)
    assert (table.version, table.num_bytes) == (version, num_bytes)
    assert table.slot_of(table.key_of("c")) == 0
    check_same(table, model, "c", folders["c"])
    check_same(table, model, "b", folders["b"])


def test_a_slot_of_dora_is_another_ones_later(model, folders):
    table = load(model, {"dora": folders["dora"], "a": folders["a"]})
    unload(table, "dora")
    ask(table, "c", folders["c"])
    assert table.slot_of(table.key_of("c")) == 0
    check_same(table, model, "c", folders["c"])
    unload(table, "a")
    ask(table, "dora", folders["dora"])
    check_same(table, model, "dora", folders["dora"])


def test_whole_modules_go_with_their_adapter(model, folders, tmp_path):
    """Whoever gets its slot has the model's."""
    own = {"target_modules": ("v_proj",), "modules_to_save": ["embed_tokens", "lm_head"]}
    write_adapter(create_pair("Qwen2", 3)[1], tmp_path, 7, **own)
    host = Host()
    table = load(model, {"whole": tmp_path, "a": folders["a"]}, host)
    slots, version = torch.tensor([0, 1]), table.version
    assert {slot for made in table.of_rows(slots).copies.values() for slot, _ in made} == {0}
    unload(table, "whole")
    assert not table.of_rows(slots).copies
    assert table.version > version
    assert sum(host.lent.values()) == table.num_bytes


def test_a_name_never_means_the_one_before(model, folders):
    table = load(model, {"a": folders["a"]})
    before = table.key_of("a")
    assert unload(table, "a") == [None]
    with pytest.raises(UnknownAdapter):
        table.key_of("a")
    ask(table, "a", folders["b"])
    assert table.key_of("a") != before
    check_same(table, model, "a", folders["b"])


def test_the_last_one_gives_the_memory_back(model, folders):
    host = Host()
    table = load(model, {"a": folders["a"], "b": folders["b"]}, host)
    for name in "ab":
        assert host.lent
        unload(table, name)
    assert (host.lent, table.num_bytes, table.names) == ({}, 0, ())
    assert isinstance(ask(table, "c", folders["c"]), AdapterReport)
    check_same(table, model, "c", folders["c"])


def test_one_that_is_in_use_stays_until_it_is_not(model, folders):
    table = load(model, {"a": folders["a"]}, room=1)
    key = table.key_of("a")
    answers = unload(table, "a", in_use=[key])
    with pytest.raises(UnknownAdapter):
        table.key_of("a")
    assert (answers, table.slot_of(key), table.has_work()) == ([], 0, True)
    ask(table, "b", folders["b"], in_use=[key])
    assert table.slot_of(table.key_of("b")) == 1
    table.advance(lambda: {table.key_of("b")})
    assert (answers, table.has_work()) == ([None], False)
    with pytest.raises(UnknownAdapter):
        table.slot_of(key)


def test_one_takes_the_place_of_another(model, folders):
    table = load(model, {"a": folders["a"]})
    before = table.key_of("a")
    error = ask(table, "a", folders["b"])
    assert isinstance(error, ModelConflict)
    assert table.key_of("a") == before
    ask(table, "a", folders["b"], replaces=True, in_use=[before])
    assert table.slot_of(before) == 0
    check_same(table, model, "a", folders["b"])
    error = ask(table, "a", folders["c"], replaces=True, in_use=[before])
    assert isinstance(error, TooManyAdapters)
    assert "2 adapters (1 of them until their requests end)" in error.message
    ask(table, "a", folders["c"], replaces=True)
    check_same(table, model, "a", folders["c"])
    assert table.names == ("a",)


def test_only_so_many(model, folders):
    table = load(model, {"a": folders["a"]}, room=1)
    ask(table, "b", folders["b"])
    error = ask(table, "c", folders["c"])
    assert isinstance(error, TooManyAdapters)
    assert "max_loras is 2" in error.message
    unload(table, "b")
    assert isinstance(ask(table, "c", folders["c"]), AdapterReport)


def cut(folder):
    (folder / CONFIG).write_text("{")


def deepen(folder):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"r": 7}))


@pytest.mark.parametrize(("damage", "error"), [(cut, CorruptFile), (deepen, ModelLoadError)])
def test_a_broken_one_changes_nothing(model, folders, tmp_path, damage, error):
    host = Host()
    table = load(model, {"a": folders["a"]}, host, room=1)
    before = (table.version, dict(host.lent), table.names)
    damage(shutil.copytree(folders["b"], tmp_path / "b"))
    answer = ask(table, "b", tmp_path / "b")
    assert isinstance(answer, error)
    assert str(tmp_path) not in answer.message
    assert (table.version, host.lent, table.names) == before
    check_same(table, model, "a", folders["a"])


def test_memory_is_asked_for_before_it_is_taken(model, folders):
    host = Host()
    table = load(model, {"a": folders["a"]}, host, room=1)
    assert table.num_bytes == taken_bytes(table)
    gated = load(model, {"dora": folders["dora"]}, Host())
    assert gated.num_bytes == taken_bytes(gated)
    assert sum(host.lent.values()) == table.num_bytes
    host.capacity = 2 * table.num_bytes
    answer = ask(table, "b", folders["b"])
    assert isinstance(answer, InsufficientMemory)
    assert sum(host.lent.values()) == table.num_bytes
    refused = load(model, {"a": folders["a"]}, Host(9))
    assert (refused.names, refused.num_bytes) == ((), 0)
    assert refused.failed == {"a": "there is none left"}


def test_memory_of_a_load_that_fails_later_is_given_back(model, folders, monkeypatch):
    host = Host()
    table = load(model, {"a": folders["a"]}, host, room=1)
    monkeypatch.setattr(table, "_filled", lambda *_: 1 / 0)
    answer = ask(table, "b", folders["b"])
    assert answer.message == "ZeroDivisionError while the adapter was loaded"
    assert sum(host.lent.values()) == table.num_bytes


def test_steps_go_on_while_files_are_read(model, folders, monkeypatch):
    table = load(model, {"a": folders["a"]}, room=2)
    may_read, plan = threading.Event(), text_adapters.plan_adapter
    monkeypatch.setattr(
        text_adapters, "plan_adapter", lambda *args: may_read.wait() and plan(*args)
    )
    answers = []
    for name in "bc":
        table.load(AdapterOrder(name=name, folder=str(folders[name])), answers.append)
    for _ in range(3):
        table.advance(set)
        table.wait(0.001)
    assert (answers, table.has_work(), table.names) == ([], True, ("a",))
    may_read.set()
    settle(table)
    assert table.names == ("a", "b", "c")
    assert len(answers) == 2


def test_arrays_of_a_device_have_slots_for_those_to_come(model, folders, monkeypatch):
    table = load(model, {}, room=4)
    monkeypatch.setattr(table, "_is_on_host", False)
    ask(table, "first", folders["a"])
    version = table.version
    ask(table, "second", folders["a"])
    assert table.version == version
    ask(table, "third", folders["a"])
    assert table.version > version
    assert table._slots.room.num_slots == 4  # as many as there may ever be
    for name in ("first", "second", "third"):
        check_same(table, model, name, folders["a"])


def test_arrays_stay_where_they_are_as_more_come(model, folders, monkeypatch):
    """Unless one needs more than the others have, or there is no address space."""
    host = Host()
    table = load(model, {}, host, room=5)
    ask(table, "first", folders["a"])
    version, slots = table.version, table._slots
    each = table.num_bytes
    for count, name in enumerate(("second", "third"), 2):
        assert isinstance(ask(table, name, folders["a"]), AdapterReport)
        assert sum(host.lent.values()) == table.num_bytes == count * each
    assert (table.version, table._slots) == (version, slots)  # recorded steps stay good
    host.capacity = table.num_bytes
    assert isinstance(ask(table, "fourth", folders["a"]), InsufficientMemory)
    host.capacity = 1 << 40
    assert isinstance(ask(table, "fourth", folders["b"]), AdapterReport)
    assert table.version > version
    assert sum(host.lent.values()) == table.num_bytes == taken_bytes(table)
    for name, folder in zip(("first", "second", "third", "fourth"), "aaab", strict=True):
        check_same(table, model, name, folders[folder])
    for name in table.names:
        unload(table, name)
    assert not host.lent

    def limited(num_bytes, *, huge=False):
        """Of linear layers there is room for two adapters, and less than three."""
        if huge and num_bytes >= 3 * each:
            raise OSError("Cannot allocate memory")
        return lazy_zeros(num_bytes)

    monkeypatch.setattr(arrays_module, "lazy_zeros", limited)
    for name in ("first", "second"):
        assert isinstance(ask(table, name, folders["a"]), AdapterReport)
    for name in ("first", "second"):
        check_same(table, model, name, folders["a"])


def test_they_are_written_into_slots_beside_the_steps(model, folders, monkeypatch):
    table, threads, put = load(model, {}, room=2), [], LoraSlots.put

    def noted(*args):
        threads.append(threading.current_thread())
        put(*args)

    monkeypatch.setattr(LoraSlots, "put", noted)
    ask(table, "into new arrays", folders["a"])
    ask(table, "beside it", folders["a"])
    assert len(threads) == 2
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("fails", [False, True])
def test_the_last_one_goes_while_another_comes(model, folders, monkeypatch, fails):
    host = Host()
    table = load(model, {"a": folders["a"], "b": folders["b"]}, host)
    unload(table, "b")
    fill, filled, may_go_on = table._filled, [], threading.Event()

    def fill_later(*args):
        filled.append(fill(*args))
        assert may_go_on.wait(30)
        return filled[0] if not fails else 1 / 0

    monkeypatch.setattr(table, "_filled", fill_later)
    answers = []
    table.load(AdapterOrder(name="again", folder=str(folders["a"])), answers.append)
    while not filled:
        table.wait(0.01)
        table.advance(set)
    unload(table, "a")
    assert "a" not in table.names
    may_go_on.set()
    settle(table)
    if fails:
        assert isinstance(answers[0], ModelLoadError)
        assert not any(host.lent.values())
        assert table.num_bytes == 0
    else:
        assert isinstance(answers[0], AdapterReport)
        check_same(table, model, "again", folders["a"])
        unload(table, "again")
        assert not any(host.lent.values())


def test_what_nobody_thought_of_harms_no_model(model, folders, monkeypatch):
    table = load(model, {"a": folders["a"]}, room=1)

    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(text_adapters, "plan_adapter", fail)
    assert ask(table, "b", "/nowhere").message == "ZeroDivisionError while the adapter was loaded"
    assert load(model, {"a": "/nowhere"}).failed == {
        "a": "ZeroDivisionError while the adapter was loaded"
    }


def test_names_that_are_not_there(model, folders):
    table = load(model, {"a": folders["a"]})
    with pytest.raises(UnknownAdapter):
        table.key_of("d")
    [answer] = unload(table, "d")
    assert isinstance(answer, UnknownAdapter)


def test_a_model_that_never_has_any_asks_for_nothing(model):
    host = Host()
    assert load_adapters({}, model, host, limits_of(0)) is None
    assert load_adapters({}, model, host, limits_of(3)).names == ()
    assert (host.reserved, host.lent) == ([], {})


@pytest.mark.parametrize("copies", [True, False])
def test_more_of_them_than_slots(model, folders, monkeypatch, copies):
    """Each is what it would be alone, whoever had the slot before; with copies nothing is read
    again."""
    host = Host()
    table = load(model, folders, host, max_slots=2)
    assert table.names == tuple(folders)
    assert sum(kept.place is not None for kept in table._kept.values()) == 2
    reads, read = [], table._read
    counted = lambda folder, **how: reads.append(folder) or read(folder, **how)  # noqa: E731
    monkeypatch.setattr(table, "_read", counted)
    if not copies:
        table._copies.shrink(0)
        monkeypatch.setattr(table._copies, "keep", lambda *_: None)
    for name in ("dora", "a", "c", "b", "dora", "c"):
        assert bring(table, name) is None
        check_same(table, model, name, folders[name])
        assert {kept.place for kept in table._kept.values()} <= {None, 0, 1}
    assert bool(reads) != copies
    assert sum(host.lent.values()) == table.num_bytes + table._copies.num_bytes
    for name in folders:
        unload(table, name)
    assert host.lent == {}


def test_memory_has_a_limit(model, folders, monkeypatch):
    """Arrays and copies together; what does not fit is read again, and one that is larger than all
    of it is refused before it is read."""
    sizes = {name: load(model, {name: folder}).num_bytes for name, folder in folders.items()}
    most = max(sizes.values())
    host = Host()
    table = load(model, folders, host, max_bytes=most)
    assert table.failed == {}
    for name in (*folders, *reversed(folders)):
        assert bring(table, name) is None
        check_same(table, model, name, folders[name])
        assert table.num_bytes + table._copies.num_bytes <= most
        assert sum(host.lent.values()) == table.num_bytes + table._copies.num_bytes
    small = load(model, {"c": folders["c"]}, room=3, max_bytes=most - 1)
    [largest] = [name for name, size in sizes.items() if size == most]
    monkeypatch.setattr(AdapterPlan, "read", lambda plan: 1 / 0)
    answer = ask(small, largest, folders[largest])
    assert isinstance(answer, InsufficientMemory)
    assert "lora_memory_gib" in answer.message


def test_one_whose_files_have_changed_is_not_what_its_key_meant(model, folders, tmp_path):
    places = {name: shutil.copytree(folders[name], tmp_path / name) for name in "ab"}
    table = load(model, places, max_slots=1)
    table._copies.shrink(0)
    shutil.copytree(folders["c"], places["b"], dirs_exist_ok=True)
    error = bring(table, "b")
    assert isinstance(error, UnknownAdapter)
    assert "have changed" in error.message
    assert str(tmp_path) not in error.message
    assert bring(table, "a") is None
    check_same(table, model, "a", folders["a"])
    assert isinstance(ask(table, "b", places["b"], replaces=True), AdapterReport)
    assert bring(table, "b") is None
    check_same(table, model, "b", folders["c"])


def save_anew(folder):
    tensors = {key: tensor + 1 for key, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)


def save_another(folder):
    write_adapter(create_pair("Qwen2", 3)[1], folder, 9, r=2, target_modules=("v_proj",))


def shorten(folder):
    os.truncate(folder / WEIGHTS, 999)


@pytest.mark.parametrize("change", [save_anew, save_another, shorten, cut])
def test_one_that_is_written_to_while_it_is_read_is_refused(
    model, folders, tmp_path, monkeypatch, change
):
    place, plan = shutil.copytree(folders["b"], tmp_path / "b"), text_adapters.plan_adapter
    os.utime(place / WEIGHTS, ns=(0, 0))  # clocks of file systems are coarse

    def planned(*args):
        found = plan(*args)
        change(place)
        return found

    host = Host()
    table = load(model, {"a": folders["a"]}, host, room=1)
    lent = dict(host.lent)
    monkeypatch.setattr(text_adapters, "plan_adapter", planned)
    answer = ask(table, "b", place)
    assert isinstance(answer, ModelLoadError)
    assert "the adapter's files have changed since reading them began" in answer.message
    assert (table.names, host.lent) == (("a",), lent)
    check_same(table, model, "a", folders["a"])


def test_one_with_requests_keeps_its_slot(model, folders):
    table = load(model, {name: folders[name] for name in "abc"}, max_slots=2)
    a, b, c = (table.key_of(name) for name in "abc")
    for _ in range(3):
        table.advance(lambda: {a, b}, [[c]])
        table.wait(0.001)
    assert (table.slot_of(a), table.slot_of(b), table.take([c])) == (0, 1, False)
    assert not table.take([a]), "it takes no more requests before `c` had its turn"
    assert table.take([b])
    while not table.take([c]):
        table.advance(lambda: {b}, [[c]])
        table.wait(5)
    assert (table.slot_of(c), table.slot_of(b)) == (0, 1)
    with pytest.raises(UnknownAdapter):
        table.slot_of(a)
