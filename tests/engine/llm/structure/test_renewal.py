"""A grammar whose lexer is used up is renewed beside the steps, and whoever waits for that gets the
text that it would have got."""

import random
import threading

import pytest
from llguidance import LLParserLimits

from engine.contract.groups import GuidanceParams
from engine.contract.structure import Structure, StructureKind
from engine.llm.structure import matcher
from engine.llm.structure.grammars import Grammars

HUNGRY = Structure(StructureKind.REGEX, "(.{1,900}x){1,900}")
"""Each text of it adds to the lexer's states."""
NUM_TOKENS = 500


@pytest.fixture(scope="module")
def folder(tiny_llama):
    return tiny_llama(seed=4)


@pytest.fixture
def few_states(monkeypatch):
    limits = LLParserLimits(max_lexer_states=2000, verbose_errors=False)
    monkeypatch.setattr(matcher, "LIMITS", limits)


@pytest.fixture
def held_up(monkeypatch):
    """Grammars are not renewed before this is set."""
    go_on, renew = threading.Event(), Grammars._renew

    def wait(grammars, grammar):
        assert go_on.wait(60)
        return renew(grammars, grammar)

    monkeypatch.setattr(Grammars, "_renew", wait)
    return go_on


def use_up(grammars, rng):
    """Write texts until the lexer can take no more states."""
    grammar = grammars.prepare(HUNGRY).result(60)
    while True:
        text = grammar.start.deep_copy()
        for _ in range(200):
            mask = int.from_bytes(text.compute_bitmask(), "little")
            if text.is_error():
                return grammar
            allowed = [token for token in range(NUM_TOKENS) if mask >> token & 1]
            text.try_consume_tokens([rng.choice(allowed)])


@pytest.mark.parametrize("is_guided", [False, True])
def test_a_text_waits_for_it_and_nobody_else_does(
    engines, folder, rng, few_states, held_up, is_guided
):
    prompt = [rng.randrange(2, 400) for _ in range(rng.randrange(1, 60))]
    negative = [rng.randrange(2, 400) for _ in range(rng.randrange(1, 60))]
    guidance = GuidanceParams(scale=1.5, negative_token_ids=tuple(negative))
    drawn = {"structure": HUNGRY, "temperature": 2.0, "seed": 5, "max_tokens": 20, "n": 2}
    held = engines.request("held", prompt, **drawn, guidance=guidance if is_guided else None)
    other = engines.request("other", prompt, seed=5, max_tokens=40, ignore_eos=True)
    alone = engines.run(engines.make(folder), [held, other])

    engine = engines.make(folder)
    use_up(engine._executor._grammars, random.Random(rng.random()))
    engine.add(held)
    engine.add(other)
    told: dict[tuple[str, int], list[int]] = {key: [] for key in alone}
    while engine.has_work():
        for event in engine.step()[0]:
            assert event.failure is None
            told[event.request_id, event.index] += event.token_ids
            if event.request_id == "other" and event.finish_reason is not None:
                assert not told["held", 0] and not told["held", 1]
                held_up.set()
    assert told == {key: completion.token_ids for key, completion in alone.items()}


def test_those_that_leave_meanwhile_hold_nothing_up(engines, folder, rng, few_states, held_up):
    engine = engines.make(folder)
    use_up(engine._executor._grammars, random.Random(rng.random()))
    request = engines.request("r", [5, 6], structure=HUNGRY, temperature=2.0, max_tokens=20)
    engine.add(request)
    for _ in range(5):
        engine.step()
    engine.abort("r")
    engine.step()
    assert not engine.has_work()
    held_up.set()
    assert engines.run(engine, [request])["r", 0].token_ids
