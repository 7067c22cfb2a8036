"""What reads structures first may be lost; nothing else is, and answers are never mixed up."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.contract.structure import Structure, StructureKind
from engine.errors import CapacityError, InvalidParameter, InvariantViolation
from engine.llm.structure import reader_process
from engine.llm.structure.reader_process import ReaderProcess
from engine.processes.helper_process import HelperProcess

OR_NULL = [
    {"anyOf": [{"$ref": f"#/$defs/d{number + 1}"}, {"type": "null"}]} for number in range(1900)
]
DEEP = {
    "$ref": "#/$defs/d0",
    "$defs": {f"d{number}": one for number, one in enumerate([*OR_NULL, {"type": "string"}])},
}
"""Overflows the stack of what compiles it."""
FINE = Structure(StructureKind.REGEX, "a+")
LARGE = Structure(StructureKind.REGEX, "[a-z]?" * 20_000, param="guided_regex")
"""Takes seconds and more than a gigabyte where nothing stops it."""


@pytest.fixture
def reader(tiny_llama):
    reader = ReaderProcess(tiny_llama(seed=1), 500, (1,))
    yield reader
    reader.close()


def text_of(reader, structure):
    return reader.read(structure).text


def process_id(reader):
    return reader._process.running().process_id


def test_it_answers_and_refuses(reader):
    assert "a+" in text_of(reader, FINE)
    asked = Structure.of_schema({"uniqueItems": True, "type": "array"}, param="json_schema")
    for _ in range(2):
        with pytest.raises(InvalidParameter, match="uniqueItems") as caught:
            reader.read(asked)
        assert caught.value.param == "json_schema"
    assert "a+" in text_of(reader, FINE)


def test_it_may_be_started_before_it_is_needed(reader):
    reader.start()
    before = process_id(reader)
    assert "a+" in text_of(reader, FINE)
    assert process_id(reader) == before


def test_whoever_asks_gets_the_answer_to_that(reader):
    """Some that take long and are refused, and some that end their child, are among them."""
    hostile = [
        Structure.of_schema(DEEP),
        Structure.of_schema({"enum": [{"a": {"b": [i]}} for i in range(1200)]}),
        Structure(StructureKind.REGEX, "("),
    ]

    def ask(number):
        if number % 10 == 0:
            with pytest.raises(InvalidParameter):
                reader.read(hostile[number // 10 % len(hostile)], 60.0)
            return
        own = f"own{number}x[0-9]"
        assert own in text_of(reader, Structure(StructureKind.REGEX, own))

    with ThreadPoolExecutor(4) as pool:
        for asked in [pool.submit(ask, number) for number in range(120)]:
            asked.result(60)


def test_an_answer_about_another_structure_is_none(reader, monkeypatch):
    """Whatever may bring one."""
    theirs = Structure(StructureKind.REGEX, "b+")

    def ask(self, structure, cpu_s, asked=reader_process.ReaderProcess._ask):
        return asked(self, theirs, cpu_s)

    monkeypatch.setattr(reader_process.ReaderProcess, "_ask", ask)
    with pytest.raises(InvariantViolation, match="another"):
        reader.read(FINE)


def test_one_that_ends_its_child_ends_nothing_else(reader):
    reader.start()
    before = process_id(reader)
    with pytest.raises(InvalidParameter, match="stack") as caught:
        reader.read(Structure.of_schema(DEEP, param="json_schema"))
    assert caught.value.param == "json_schema"
    assert "a+" in text_of(reader, FINE)
    assert process_id(reader) == before


def test_time_is_bounded(reader):
    assert reader.read(LARGE, 0.02) is None
    assert "a+" in text_of(reader, FINE)


def test_memory_is_bounded(reader):
    with pytest.raises(InvalidParameter, match="memory") as caught:
        reader.read(LARGE, 60.0)
    assert caught.value.param == "guided_regex"
    assert "a+" in text_of(reader, FINE)


@pytest.mark.parametrize(
    "structure",
    [
        Structure.of_schema({"enum": [{"a": {"b": [i]}} for i in range(3000)]}),
        Structure.of_schema({"enum": [{"a": {"b": [i]}} for i in range(1100)]}),
        # 400,000 bytes that are known from the start: several times too long for one step, and far
        # below the processor time that reading may take.
        Structure(StructureKind.REGEX, "\N{GRINNING FACE}" * 100_000),
        Structure(StructureKind.GRAMMAR, "root ::= root"),
    ],
)
def test_what_no_step_could_follow_is_refused(reader, structure):
    with pytest.raises(InvalidParameter, match="cannot be enforced"):
        reader.read(structure, 60.0)


def test_it_is_started_again_when_it_was_killed(reader, rng):
    reader.start()
    is_over = threading.Event()

    def kill():
        while not is_over.wait(rng.uniform(0.05, 0.3)):
            reader._process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        for number in range(20):
            own = f"own{number}x[0-9]"
            with contextlib.suppress(CapacityError):
                assert own in text_of(reader, Structure(StructureKind.REGEX, own))
    finally:
        is_over.set()
        killer.join()
    assert "a+" in text_of(reader, FINE)


def test_a_child_outlives_the_process(reader):
    """What it has read is answered, though nobody adds its exit code."""
    text_of(reader, FINE)
    before = process_id(reader)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(reader.read, LARGE, 60.0)
        time.sleep(0.1)
        os.kill(before, signal.SIGKILL)
        with pytest.raises(InvalidParameter, match="memory"):
            asked.result(60)
    assert "a+" in text_of(reader, FINE)
    assert process_id(reader) != before


@pytest.mark.parametrize("command", [(sys.executable, "-c", ""), ("/no/such/program",)])
def test_one_that_is_always_lost_is_no_fault_of_the_structure(reader, command):
    reader._process = HelperProcess(command)
    reader.start()
    with pytest.raises(CapacityError, match="again"):
        reader.read(FINE)


def test_models_whose_tokens_cannot_be_used_say_so(tiny_llama):
    reader = ReaderProcess(tiny_llama(seed=1), 500, ())
    with pytest.raises(InvalidParameter, match="no end-of-sequence"):
        reader.read(FINE)


def test_texts_of_any_characters_and_length(reader):
    text = json.dumps({"const": "line\nbreak \u2028 \x00 é"}, ensure_ascii=False)
    assert reader.read(Structure(StructureKind.JSON_SCHEMA, text))
    long = json.dumps({"description": "é\u2028" * 60_000}, ensure_ascii=False)
    assert reader.read(Structure(StructureKind.JSON_SCHEMA, long))
