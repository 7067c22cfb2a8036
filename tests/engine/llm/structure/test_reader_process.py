"""What reads structures first may be lost; nothing else is."""

import json

import pytest

from engine.errors import InvalidParameter
from engine.llm.structure import reader_process
from engine.llm.structure.reader_process import ReaderProcess
from engine.structure import Structure, StructureKind

OR_NULL = [
    {"anyOf": [{"$ref": f"#/$defs/d{number + 1}"}, {"type": "null"}]} for number in range(1900)
]
DEEP = {
    "$ref": "#/$defs/d0",
    "$defs": {f"d{number}": one for number, one in enumerate([*OR_NULL, {"type": "string"}])},
}
"""Overflows the stack of what compiles it."""
FINE = Structure(StructureKind.REGEX, "a+")


@pytest.fixture
def reader(tiny_llama):
    reader = ReaderProcess(tiny_llama(seed=1), 500, (1,))
    yield reader
    reader.close()


def test_it_answers_and_refuses(reader):
    assert "a+" in reader.read(FINE)
    asked = Structure.of_schema({"uniqueItems": True, "type": "array"}, param="json_schema")
    for _ in range(2):
        with pytest.raises(InvalidParameter, match="uniqueItems") as caught:
            reader.read(asked)
        assert caught.value.param == "json_schema"
    assert "<|im_start|>" not in reader.read(FINE)


def test_it_may_be_started_before_it_is_needed(reader):
    reader.start()
    process = reader._process
    assert "a+" in reader.read(FINE)
    assert reader._process is process


def test_one_that_ends_the_process_ends_nothing_else(reader):
    with pytest.raises(InvalidParameter, match="stack") as caught:
        reader.read(Structure.of_schema(DEEP, param="json_schema"))
    assert caught.value.param == "json_schema"
    assert "a+" in reader.read(FINE)


def test_one_that_takes_too_long_is_stopped(reader, monkeypatch):
    reader.read(FINE)
    monkeypatch.setattr(reader_process, "WALL_SECONDS", 0.0)
    monkeypatch.setattr(reader_process, "_ask", slow_ask)
    with pytest.raises(InvalidParameter, match="more than 0 s"):
        reader.read(FINE)
    monkeypatch.undo()
    assert "a+" in reader.read(FINE)


def slow_ask(process, structure):
    """Nothing is asked, so that nothing is answered."""
    assert process.stdout.readline() == ""
    process.wait()


def test_what_would_make_a_step_long_is_refused(reader):
    with pytest.raises(InvalidParameter, match="too long"):
        reader.read(Structure(StructureKind.REGEX, "ab" * 60_000))


def test_models_whose_tokens_cannot_be_used_say_so(tiny_llama):
    reader = ReaderProcess(tiny_llama(seed=1), 500, ())
    with pytest.raises(InvalidParameter, match="no end-of-sequence"):
        reader.read(FINE)


def test_it_ends_when_nobody_holds_it(tiny_llama):
    reader = ReaderProcess(tiny_llama(seed=1), 500, (1,))
    reader.read(FINE)
    process = reader._process
    del reader
    assert process.poll() is not None


def test_requests_of_any_text_are_one_line(reader):
    text = json.dumps({"const": "line\nbreak \u2028 \x00 é"}, ensure_ascii=False)
    assert reader.read(Structure(StructureKind.JSON_SCHEMA, text))
