"""A grammar whose lexer is used up is renewed beside the steps: whose text waits gets the same text."""

import threading

import pytest
from llguidance import LLParserLimits

from engine.llm.structure import matcher
from engine.llm.structure.grammars import Grammars
from engine.structure import Structure, StructureKind

HUNGRY = Structure(StructureKind.REGEX, "(.{1,900}x){1,900}")
"""Each text of it adds to the lexer's states."""


@pytest.fixture(scope="module")
def folder(tiny_llama):
    return tiny_llama(seed=4)


@pytest.fixture
def few_states(monkeypatch):
    limits = LLParserLimits(max_lexer_states=2000, verbose_errors=False)
    monkeypatch.setattr(matcher, "LIMITS", limits)


def requests(engines, rng, number, **sampling):
    prompt = [rng.randrange(2, 400) for _ in range(rng.randrange(1, 60))]
    fields = {"structure": HUNGRY, "temperature": 2.0, "seed": number, "max_tokens": 150}
    return [engines.request(f"r{i}", prompt, **(fields | sampling)) for i in range(number)]
