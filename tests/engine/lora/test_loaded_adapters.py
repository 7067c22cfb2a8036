"""Turns of adapters of any kind: more of them than places, and requests that want them."""

import random
from concurrent.futures import Future
from dataclasses import dataclass

import pytest

from engine.contract.adapter_orders import AdapterOrder, AdapterReport
from engine.contract.request import Request
from engine.errors import InsufficientMemory, InvalidParameter, TooManyAdapters, UnknownAdapter
from engine.lora.loaded_adapters import AdapterLimits, LoadedAdapters, ReadAdapter
from engine.lora.source import Source
from engine.turns.adapter_queue import AdapterQueue

REPORT = AdapterReport(num_layers=1, ranks=(1,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish(Request):
    """A request for several adapters."""

    keys: tuple[str, ...] = ()

    @property
    def adapter_names(self):
        return self.keys


class Board(LoadedAdapters):
    """Adapters are numbers of bytes: their folders. Reading takes a random number of steps."""

    def __init__(self, **limits):
        limits = AdapterLimits(capacity_bytes=1, **{"max_adapters": 99, **limits})
        super().__init__(limits, None, "cpu")
        self.broken, self.error = set(), ZeroDivisionError()
        self.read = []

    def _reading(self, folder, *, is_new=False):
        for _ in range(random.randrange(3)):
            done = Future()
            done.set_result(None)
            yield random.choice([None, done])
        self.read.append(folder)
        if folder in self.broken:
            raise self.error
        self._check_size(int(folder))
        return ReadAdapter(Source.of(folder), int(folder), REPORT, None)

    def _making_ready(self, read):
        yield from ()
        return read.size

    def _enter(self, key, read, place):
        self._put(self._kept[key], place)

    def _bytes_of(self, sizes):
        return sum(sizes)

    def _withdraw(self, key, place):
        pass


class Play:
    """An engine that gives each request some steps, and checks after each that those which have
    begun have their adapters."""

    def __init__(self, board):
        self.board, self.queue = board, AdapterQueue(board)
        self.running: dict[str, list] = {}
        """Requests that have begun, with the steps that they still take."""
        self.begun, self.refused, self.steps_of, self.num_steps = [], {}, {}, 0
        self.answers = []

    def add(self, id, *names, steps=3):
        wish = Wish(request_id=id, model="m", keys=tuple(map(self.board.key_of, names)))
        self.board.check(wish.keys)
        self.steps_of[id] = steps
        if self.board.take(wish.keys):
            self.begin(wish)
        else:
            self.queue.add(wish)

    def begin(self, wish):
        self.begun.append(wish.request_id)
        self.running[wish.request_id] = [wish, self.steps_of[wish.request_id]]

    def in_use(self):
        return {key for wish, _ in self.running.values() for key in wish.keys}

    def step(self):
        self.num_steps += 1
        for wish, error in self.queue.advance(self.in_use, self.begin):
            self.refused[wish.request_id] = error
        for id, entry in list(self.running.items()):
            assert all(self.board._kept[key].place is not None for key in entry[0].keys)
            entry[1] -= 1
            if entry[1] <= 0:
                del self.running[id]
        placed = self.board._placed()
        assert len(placed) <= self.board._limits.max_slots + sum(
            kept.is_leaving for kept in self.board._kept.values()
        )

    def serve(self, id, *names):
        self.add(id, *names)
        self.settle()

    def order(self, name, folder, **how):
        """Have an adapter loaded; the answer is added to `answers`."""
        order = AdapterOrder(name=name, folder=str(folder), **how)
        self.board.load(order, self.answers.append)

    def settle(self):
        while self.queue.has_work() or self.running:
            assert self.num_steps < 10_000, "somebody waits for ever"
            self.step()


def play_of(sizes, **limits):
    play = Play(Board(**limits))
    for name, size in sizes.items():
        play.order(name, size)
        play.settle()
        assert play.answers.pop() == REPORT
    return play


def test_the_one_used_least_lately_makes_way():
    play = play_of({"a": 1, "b": 1, "c": 1}, max_slots=2)
    assert [kept.name for kept in play.board._placed()] == ["a", "b"]
    for id, name in (("1", "b"), ("2", "a"), ("3", "c")):
        play.serve(id, name)
    assert {kept.name for kept in play.board._placed()} == {"a", "c"}
    read = play.board.read.copy()
    play.add("4", "a")
    assert (play.begun, play.board.read) == (["1", "2", "3", "4"], read)


def test_one_that_nobody_has_makes_way_at_once_though_it_was_used_last():
    play = play_of({"a": 1, "b": 1, "c": 1}, max_slots=2)
    play.add("1", "b", steps=99)
    play.add("2", "a", steps=1)
    for _ in range(9):
        play.step()
    play.add("3", "c", steps=1)
    for _ in range(9):
        play.step()
    assert (play.begun, list(play.running)) == (["1", "2", "3"], ["1"])


def test_of_those_in_use_the_one_that_came_first_makes_way():
    play = play_of({"a": 1, "b": 1, "c": 1}, max_slots=2)
    play.add("1", "b", steps=99)
    play.add("2", "a", steps=99)
    play.add("3", "c")
    play.step()
    play.add("4", "b")
    play.add("5", "a")
    assert play.begun == ["1", "2", "4"], "a waits until c has had its turn"


def test_what_is_asked_for_together_does_not_make_way_for_each_other():
    play = play_of({"a": 1, "b": 1, "c": 2}, max_slots=2)
    read = play.board.read.copy()
    play.serve("1", "a", "c")
    assert (play.begun, play.board.read) == (["1"], [*read, "2"])


def test_nobody_waits_for_loads_that_were_ordered_later():
    play = play_of({"a": 1, "b": 2}, max_slots=1)
    play.order("x", 3)
    play.order("y", 4)
    play.serve("1", "b")
    assert play.board.read[2:4] == ["3", "2"], "x has begun, y has not"


def test_one_in_use_is_waited_for_and_newcomers_of_it_go_behind():
    """Without that rule, requests for `a` that overlap would keep `b` out for ever."""
    play = play_of({"a": 1, "b": 1}, max_slots=1)
    play.add("a0", "a", steps=4)
    play.add("b0", "b", steps=2)
    for number in range(1, 20):
        play.step()
        play.add(f"a{number}", "a", steps=4)
    assert "b0" in play.begun
    play.settle()
    assert len(play.begun) == 21
    assert play.begun.index("b0") < 3


def test_as_many_go_as_a_large_one_needs():
    play = play_of({"a": 2, "b": 3, "c": 1, "large": 8}, max_slots=9, max_bytes=9)
    play.add("small", "c", steps=9)
    play.add("x", "large")
    assert "x" not in play.begun
    play.settle()
    assert {kept.name for kept in play.board._placed()} == {"c", "large"}


def test_what_can_never_be_in_place_is_refused():
    play = play_of({"a": 4, "b": 4, "c": 1}, max_slots=2, max_bytes=7)
    with pytest.raises(InvalidParameter, match="ask for fewer"):
        play.add("x", "a", "b")
    with pytest.raises(InvalidParameter, match="max_loras is 2"):
        play.add("x", "a", "b", "c")
    play.order("d", 8)
    play.settle()
    assert isinstance(play.answers[0], InsufficientMemory)
    assert play.board.names == ("a", "b", "c")


def test_one_that_cannot_be_had_again_fails_its_requests_alone():
    play = play_of({"a": 1, "b": 2, "c": 3}, max_slots=1)
    play.board.broken = {"2"}
    for id, name in (("0", "b"), ("1", "c"), ("2", "b"), ("3", "a")):
        play.add(id, name)
    play.settle()
    assert sorted(play.begun) == ["1", "3"]
    assert sorted(play.refused) == ["0", "2"]
    assert isinstance(play.refused["0"], UnknownAdapter)
    play.board.broken = set()
    play.serve("4", "b")
    assert "4" in play.begun


def test_a_place_that_cannot_be_had_again_is_told_of_as_such():
    play = play_of({"a": 1, "b": 2}, max_slots=1)
    play.board.broken = {"2"}
    play.board.error = InsufficientMemory("no room")
    play.serve("1", "b")
    assert play.refused["1"] is play.board.error


def test_no_more_are_kept_than_may_be():
    play = play_of({"a": 1, "b": 1}, max_slots=1, max_adapters=2)
    play.order("c", 1)
    play.order("b", 1, replaces=True)
    play.settle()
    assert isinstance(play.answers[0], TooManyAdapters) and play.answers[1] == REPORT


def test_one_that_takes_the_place_of_another_is_in_place_at_once():
    play = play_of({"a": 1}, max_slots=1)
    play.add("1", "a", steps=9)
    play.step()
    play.order("a", 2, replaces=True)
    while play.board._loads:
        play.step()
    play.add("2", "a")
    assert play.begun == ["1", "2"]


def test_an_unload_waits_for_those_who_wait():
    play = play_of({"a": 1, "b": 1}, max_slots=1)
    play.add("a", "a", steps=5)
    play.add("b", "b")
    play.board.unload("b", play.answers.append)
    play.step()
    assert play.answers == []
    play.settle()
    assert play.answers == [None]
    assert play.begun == ["a", "b"]


@pytest.mark.parametrize("limits", [{"max_slots": 3}, {"max_slots": 3, "max_bytes": 12}])
def test_whoever_asks_is_served(limits):
    """Random requests for one to three of many adapters, aborted now and then, while adapters are
    loaded, replaced and unloaded: all that were taken begin, and nothing is left."""
    sizes = {name: random.randrange(1, 5) for name in "abcdefgh"}
    play = play_of(sizes, **limits)
    taken, aborted = [], set()
    for number in range(200):
        names = random.sample(sorted(sizes), random.randrange(1, 4))
        try:
            play.add(str(number), *names, steps=random.randrange(1, 6))
            taken.append(str(number))
        except UnknownAdapter:
            pass
        if random.random() < 0.1:
            name = random.choice(sorted(sizes))
            if name in play.board.names and random.random() < 0.5:
                play.board.unload(name, play.answers.append)
            else:
                play.order(name, sizes[name], replaces=True)
        if random.random() < 0.1 and taken:
            id = random.choice(taken)
            aborted.add(id)
            play.queue.forget(id)
            play.running.pop(id, None)
        for _ in range(random.randrange(3)):
            play.step()
    play.settle()
    assert not play.refused
    assert set(taken) - aborted <= set(play.begun)
    for name in play.board.names:
        play.board.unload(name, play.answers.append)
    play.settle()
    assert play.board._kept == {}
