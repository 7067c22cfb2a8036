"""Grammars are made beside the steps, kept within bounds, and bounded in what they take."""

import gc
import json
import random
import threading

import pytest

from engine.contract.structure import Structure, StructureKind, Tag, Tags
from engine.errors import (
    EngineError,
    InvalidParameter,
    InvariantViolation,
    QueueFull,
    UnsupportedFeature,
)
from engine.llm.structure import grammars as module
from engine.llm.structure.grammar_text import grammar_text
from engine.llm.structure.grammars import Grammars
from engine.llm.structure.reading import QUICK_SECONDS, Reading
from engine.llm.structure.token_table import load_token_table

DOUBLED = ["start: r0", *(f"r{i}: r{i + 1} r{i + 1}" for i in range(40))]
HOSTILE = {
    "counted": ("regex", "(a{1,1000}){1,1000}"),
    "states": ("regex", ".*(a|b|c)*a(a|b|c){18}"),
    "letters": ("regex", r"(\p{L}{1,500}){1,50}"),
    "dots": ("regex", "(.{1,5000}x){1,5000}"),
    "ambiguous": ("regex", "(a?){5000}a{5000}"),
    "nested": ("regex", "(" * 3000 + "a" + ")" * 3000),
    "words": ("regex", "|".join(f"word{i}" for i in range(9000))),
    "items": ("json_schema", {"type": "array", "items": {"type": "integer"}, "minItems": 10**9}),
    "length": ("json_schema", {"type": "string", "minLength": 10**9}),
    "long values": ("json_schema", {"enum": ["x" * 60000, "y" * 60000]}),
    "values": ("json_schema", {"enum": [{"a": {"b": [i]}} for i in range(3000)]}),
    "optional": ("json_schema", {"properties": {f"f{i}": {} for i in range(1900)}}),
    "references": (
        "json_schema",
        {
            "$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(25)}
            | {"d25": {"type": "object"}},
            "$ref": "#/$defs/d0",
        },
    ),
    "circle": ("json_schema", {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}),
    "patterns": (
        "json_schema",
        {"allOf": [{"type": "string", "pattern": f"(a|b)*a(a|b){{{i}}}"} for i in range(1, 14)]},
    ),
    "multiples": ("json_schema", {"type": "integer", "multipleOf": 9973}),
    "parses": ("grammar", 'start: s\ns: s s s | s s | /[a-z ]/ |'),
    "doubled": ("grammar", "\n".join([*DOUBLED, 'r40: "a"'])),
    "endless": ("grammar", 'root ::= root'),
}  # fmt: skip


@pytest.fixture(scope="module")
def table(tiny_llama):
    return load_token_table(tiny_llama(seed=1), 500, (1,))


@pytest.fixture
def grammars(table):
    return make_grammars(table)


def make_grammars(table):
    return Grammars(lambda: table, lambda asked, _: Reading(grammar_text(asked, table.names)))


def made(grammars, asked):
    return grammars.prepare(asked).result(60)


def structure(kind, text):
    return Structure(StructureKind(kind), text if isinstance(text, str) else json.dumps(text))


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_is_asked_ends(grammars, name):
    """It ends with a grammar or a refusal, and each mask stays within its limits."""
    rng = random.Random(3)
    try:
        matcher = made(grammars, structure(*HOSTILE[name])).start
    except InvalidParameter as error:
        assert error.param == "structure"
        return
    for _ in range(60):
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        allowed = [token for token in range(500) if mask >> token & 1]
        if matcher.is_error() or matcher.is_stopped():
            return
        matcher.try_consume_tokens([rng.choice(allowed)])


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("grammar", ""), ("grammar", "start: undefined"),
        ("grammar", "::"),
        ("grammar", "root ::= \"a"), ("regex", "("), ("regex", "(?<=a)b"), ("json_schema", "[]"),
        ("json_schema", "3"), ("json_schema", "{"), ("json_schema", '{"const": NaN}'),
        ("json_schema", '{"const": "\\ud800"}'), ("tags", "{}"), ("choice", "[]"), ("choice", "3"),
        ("tags", '{"tags": 3}'), ("grammar", "start: %json {\"uniqueItems\": true}"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(grammars, kind, text):
    with pytest.raises(EngineError) as caught:
        made(grammars, structure(kind, text))
    assert isinstance(caught.value, InvalidParameter)


def test_the_tokens_are_there_before_the_first_one(grammars, table, monkeypatch):
    made = []
    monkeypatch.setattr(grammars, "_load_tokens", lambda: made.append(1) or table)
    grammars.warm_up()
    grammars.prepare(structure("regex", "a")).result(60)
    grammars.prepare(structure("regex", "b")).result(60)
    assert made == [1]


def test_the_first_structure_starts_the_reader_once(table, reader):
    started = []
    grammars = Grammars(lambda: table, reader, lambda: started.append(threading.current_thread()))
    assert not started
    for text in ("a", "b"):
        made(grammars, structure("regex", text))
        grammars.warm_up()
    assert len(started) == 1
    assert started[0] is not threading.current_thread(), "the steps would wait"


def test_tokens_that_cannot_be_used_are_told_to_whoever_asks(grammars, monkeypatch):
    def fail():
        raise UnsupportedFeature("no end")

    monkeypatch.setattr(grammars, "_load_tokens", fail)
    grammars.warm_up()
    with pytest.raises(UnsupportedFeature, match="no end"):
        grammars.prepare(structure("regex", "a")).result(60)


class ScriptedReader:
    """Takes long for what begins with `slow`: until it is told to go on."""

    def __init__(self, table):
        self.go_on = threading.Event()
        self.patiently_read = []
        self._table = table

    def __call__(self, asked, cpu_s):
        if asked.text.startswith("slow"):
            if cpu_s <= QUICK_SECONDS:
                return None
            self.patiently_read.append(asked.text)
            assert self.go_on.wait(60)
        return Reading(grammar_text(asked, self._table.names))


@pytest.fixture
def reader(table):
    return ScriptedReader(table)


@pytest.fixture
def read_grammars(table, reader):
    return Grammars(lambda: table, reader)


def test_whoever_asks_for_one_waits_for_nothing(read_grammars, reader):
    known = made(read_grammars, structure("regex", "b"))
    asked = structure("regex", "slow")
    future = read_grammars.prepare(asked)
    assert read_grammars.begin_text(known.structure) is known
    assert read_grammars.prepare(known.structure).done()
    assert not future.done()
    with pytest.raises(InvariantViolation, match="not prepared"):
        read_grammars.begin_text(asked)
    reader.go_on.set()
    assert future.result(60) is read_grammars.begin_text(asked)
    assert read_grammars.prepare(asked).done()


def test_quick_ones_pass_by(read_grammars, reader):
    slow = [read_grammars.prepare(structure("regex", f"slow{i}"), "a") for i in range(3)]
    for number in range(9):
        assert made(read_grammars, structure("regex", f"quick{number}"))
    assert not any(future.done() for future in slow)
    reader.go_on.set()
    assert all(future.result(60) for future in slow)


def test_clients_take_turns(read_grammars, reader):
    asked = [("a", "slow1"), ("a", "slow2"), ("a", "slow3"), ("b", "slow4"), ("c", "slow5")]
    futures = [read_grammars.prepare(structure("regex", text), client) for client, text in asked]
    made(read_grammars, structure("regex", "behind them"))
    reader.go_on.set()
    for future in futures:
        future.result(60)
    assert reader.patiently_read[0] == "slow1" and reader.patiently_read[-1] == "slow3"


def test_short_ones_of_a_client_go_first(read_grammars, reader):
    texts = ["slow" + "x" * length for length in (0, 30, 20, 10)]
    futures = [read_grammars.prepare(structure("regex", text)) for text in texts]
    made(read_grammars, structure("regex", "longer than those, and so behind them" * 2))
    reader.go_on.set()
    for future in futures:
        future.result(60)
    assert sorted(reader.patiently_read[1:], key=len) == reader.patiently_read[1:]


def test_large_ones_are_refused_while_others_hold_the_room(table, monkeypatch):
    sizes = {"large": 700, "larger": 1000, "small": 0}
    grammars = Grammars(
        lambda: table,
        lambda asked, _: Reading(grammar_text(asked, table.names), sizes[asked.text]),
    )
    monkeypatch.setattr(module, "MAX_HELD_BYTES", 1000)
    monkeypatch.setattr(module, "MAX_KEPT_BYTES", 0)
    large = made(grammars, structure("regex", "large"))
    with pytest.raises(QueueFull, match="grammar of structure takes"):
        made(grammars, structure("regex", "larger"))
    assert made(grammars, structure("regex", "small")) is not large
    del large
    gc.collect()
    assert made(grammars, structure("regex", "larger"))


def test_what_is_cancelled_before_its_turn_is_not_read(read_grammars, reader):
    futures = [read_grammars.prepare(structure("regex", f"slow{i}")) for i in range(4)]
    made(read_grammars, structure("regex", "behind them"))
    assert futures[1].cancel() and futures[3].cancel()
    reader.go_on.set()
    assert futures[0].result(60) and futures[2].result(60)
    made(read_grammars, structure("regex", "slow, behind them"))
    assert reader.patiently_read == ["slow0", "slow2", "slow, behind them"]


def test_one_of_many_clients_is_made_once(read_grammars):
    asked = structure("regex", "the same")
    futures = [read_grammars.prepare(asked, f"client {i}") for i in range(50)]
    assert len({id(future.result(60)) for future in futures}) == 1


def test_a_grammar_is_renewed_once_for_all_who_ask(grammars, monkeypatch):
    grammar = made(grammars, structure("regex", "a+"))
    worn = grammar.start
    go_on, renew = threading.Event(), grammars._renew
    monkeypatch.setattr(grammars, "_renew", lambda asked: go_on.wait(60) and renew(asked))
    first, second = grammars.renewed(grammar, worn), grammars.renewed(grammar, worn)
    assert first is second and not first.done()
    go_on.set()
    assert first.result(60) is grammar.start is not worn
    assert grammars.renewed(grammar, worn).result(0) is grammar.start
    assert grammars.begin_text(grammar.structure) is grammar


def until_idle(grammars):
    """Wait for the turns that are queued, and for those that they queue."""
    for _ in range(2):
        done = threading.Event()
        grammars._quick.take_turn("test", 1 << 40, done.set)
        assert done.wait(60)


@pytest.mark.parametrize("is_kept", [False, True])
def test_what_texts_added_is_freed_while_a_request_waits(grammars, monkeypatch, is_kept):
    """Two texts follow a grammar, and then nobody; only one that is kept may stay grown."""
    grammar = made(grammars, structure("regex", "a+"))
    first = grammar.start
    kept_bytes = grammar.num_bytes if is_kept else 0
    monkeypatch.setattr(module, "MAX_KEPT_BYTES", kept_bytes)
    grammars.prepare(grammar.structure).result(60)
    for _ in range(2):
        assert grammars.begin_text(grammar.structure) is grammar
    grammars.end_text(grammar)
    until_idle(grammars)
    assert grammar.start is first, "a text follows it"
    grammars.end_text(grammar)
    until_idle(grammars)
    assert (grammar.start is first) == is_kept
    later = grammar.start
    made(grammars, structure("regex", "b+"))  # in whose place the kept one is evicted
    until_idle(grammars)
    assert (grammar.start is later) != is_kept, "made again only if it may have grown"


def test_a_grammar_that_nobody_waits_with_is_not_made_again(grammars, monkeypatch):
    monkeypatch.setattr(module, "MAX_KEPT_BYTES", 0)
    asked = structure("regex", "a+")
    grammars.prepare(asked).result(60)
    go_on = threading.Event()
    grammar = made(grammars, asked)
    grammars.begin_text(asked)
    grammars._quick.take_turn("busy", 0, lambda: go_on.wait(60) and None)
    renewed = []
    monkeypatch.setattr(grammars, "renewed", lambda *asked: renewed.append(asked))
    grammars.end_text(grammar)
    del grammar
    gc.collect()
    go_on.set()
    until_idle(grammars)
    assert renewed == []


def test_those_that_nobody_uses_are_forgotten_beyond_a_bound(grammars, monkeypatch):
    first = made(grammars, structure("regex", "a"))
    monkeypatch.setattr(module, "MAX_KEPT_BYTES", 3 * first.num_bytes + 1000)
    held = made(grammars, structure("regex", "b"))
    del first
    for i in range(6):
        made(grammars, structure("regex", f"c{i}"))
    gc.collect()
    assert made(grammars, structure("regex", "b")) is held
    assert set(grammars._known) == {structure("regex", t) for t in ("b", "c4", "c5")}


def test_a_failure_is_not_kept(grammars):
    for _ in range(2):
        with pytest.raises(InvalidParameter):
            grammars.prepare(structure("regex", "(")).result(60)
    assert not grammars._known


def test_tags_and_special_tokens(table, grammars):
    """A special token in a tag is that token, not its letters."""
    call = Tag("<|im_start|>f(", {"type": "integer"}, ")")
    tags = Tags(tags=[call], triggers=["<|im_start|>"], at_most_one=True).structure()
    matcher = made(grammars, tags).start
    start = table.names.special["<|im_start|>"]
    assert matcher.try_consume_tokens([200, start]) == 2
    assert matcher.try_consume_tokens([201, 1]) in (0, 1)


@pytest.mark.parametrize(
    "tags",
    [
        Tags(tags=[], triggers=["a"]),
        Tags(tags=[Tag("ab", True)], triggers=["c"]),
        Tags(tags=[Tag("ab", True)], triggers=["a", ""]),
        Tags(tags=[Tag("ab", True), Tag("cd", True)], triggers=["a"]),
        Tags(tags=[Tag("a<|im_start|>", True)], triggers=["a<|im_start|>"]),
        Tags(tags=[Tag("ab", {"uniqueItems": True})], triggers=["a"]),
    ],
)
def test_tags_without_sense_are_refused(grammars, tags):
    with pytest.raises(InvalidParameter) as caught:
        made(grammars, tags.structure())
    assert "%" not in caught.value.message, "the grammar is ours, not the client's"
