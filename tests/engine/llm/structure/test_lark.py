"""Grammars in llguidance's own language, told from GBNF by how they are written."""

import json
import random

import pytest

from engine.contract.structure import Structure, StructureKind
from engine.errors import InvalidParameter
from tests.helpers.llm import byte_tokens


def allows(grammar: str, text: str) -> bool:
    structure = Structure(StructureKind.GRAMMAR, grammar, param="grammar")
    return byte_tokens.allows(byte_tokens.matcher(structure), text)


@pytest.mark.parametrize("before", ["", "\n  ", "// numbers\n"])
@pytest.mark.parametrize("start", ["start", "?start", "!start", "start "])
@pytest.mark.parametrize(
    "rest",
    [
        "{start}: NUMBER\n%import common.NUMBER",
        "%import common (NUMBER, WS)\n{start}: NUMBER",
        "%import common.INT -> NUMBER\n{start}: NUMBER",
        "%ignore / /\nNUMBER: /[0-9]+/\n{start}: NUMBER",
        "{start}: number\n?number: /[0-9]+/",
        "start[temperature=0.5]: /[0-9]+/",
    ],
)
def test_what_it_has_and_gbnf_has_not(before: str, start: str, rest: str) -> None:
    grammar = before + rest.format(start=start)
    assert allows(grammar, str(random.randrange(10**6)))
    assert not allows(grammar, "seven")


def test_a_rule_of_gbnf_may_be_called_start() -> None:
    for grammar in ('root ::= start\nstart ::= "a"', 'start ::= "a"\nroot ::= start'):
        assert allows(grammar, "a")
        assert not allows(grammar, "start")


@pytest.mark.parametrize("name", ["common.FOO", "python.NAME"])
def test_an_import_that_does_not_exist_is_named(name: str) -> None:
    library, what = name.split(".")
    for statement in (f"%import {name}", f"%import {library} ({what})"):
        with pytest.raises(InvalidParameter, match=json.dumps(name)[1:-1]) as caught:
            allows(f"{statement}\n?start: {what}", "x")
        assert caught.value.param == "grammar"
