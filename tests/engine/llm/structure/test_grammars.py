"""Grammars are made beside the steps, kept within bounds, and bounded in what they take."""

import gc
import json
import random
import threading

import pytest

from engine.errors import EngineError, InvalidParameter, UnsupportedFeature
from engine.llm.structure import grammars as module
from engine.llm.structure.grammar_text import grammar_text
from engine.llm.structure.grammars import Grammars
from engine.llm.structure.token_table import load_token_table
from engine.structure import Structure, StructureKind, Tag, Tags

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
    return Grammars(lambda: table, lambda asked: grammar_text(asked, table.names))


def structure(kind, text):
    return Structure(StructureKind(kind), text if isinstance(text, str) else json.dumps(text))


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_is_asked_ends(grammars, name):
    """With a grammar or a refusal, and each mask within its limits; nothing is raised but that."""
    rng = random.Random(3)
    try:
        matcher = grammars.find(structure(*HOSTILE[name])).matcher()
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
        grammars.find(structure(kind, text))
    assert isinstance(caught.value, InvalidParameter)


def test_the_tokens_are_there_before_the_first_one(grammars, table, monkeypatch):
    made = []
    monkeypatch.setattr(grammars, "_load_tokens", lambda: made.append(1) or table)
    grammars.warm_up()
    grammars.prepare(structure("regex", "a")).result(60)
    grammars.prepare(structure("regex", "b")).result(60)
    assert made == [1]


def test_tokens_that_cannot_be_used_are_told_to_whoever_asks(grammars, monkeypatch):
    def fail():
        raise UnsupportedFeature("no end")

    monkeypatch.setattr(grammars, "_load_tokens", fail)
    grammars.warm_up()
    with pytest.raises(UnsupportedFeature, match="no end"):
        grammars.prepare(structure("regex", "a")).result(60)


def test_a_thread_makes_them(grammars, table, monkeypatch):
    """Whoever asks for one waits for nothing."""
    go_on = threading.Event()
    monkeypatch.setattr(grammars, "_load_tokens", lambda: go_on.wait(60) and table)
    other = make_grammars(table).find(structure("regex", "b"))
    grammars._keep(other)
    grammars._known[other.structure] = other
    future = grammars.prepare(structure("regex", "a"))
    assert grammars.find(other.structure) is other
    assert grammars.prepare(other.structure).done()
    assert not future.done()
    go_on.set()
    assert future.result(60) is grammars.find(structure("regex", "a"))
    assert grammars.prepare(structure("regex", "a")).done()


def test_those_that_nobody_uses_are_forgotten_beyond_a_bound(grammars, monkeypatch):
    first = grammars.find(structure("regex", "a"))
    monkeypatch.setattr(module, "MAX_KEPT_BYTES", 3 * first.num_bytes + 1000)
    held = grammars.find(structure("regex", "b"))
    del first
    for i in range(6):
        grammars.find(structure("regex", f"c{i}"))
    gc.collect()
    assert grammars.find(structure("regex", "b")) is held
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
    matcher = grammars.find(tags).matcher()
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
        grammars.find(tags.structure())
    assert "%" not in caught.value.message, "the grammar is ours, not the client's"
