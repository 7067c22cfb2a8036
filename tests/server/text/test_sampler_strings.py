"""DRY's sequence breakers on their way to the engine: strings of a request, tokens of its model."""

from typing import Any

import numpy as np
import pytest

from engine.contract.sampling_params import SAMPLER_PARAMETERS
from engine.text.tokenizer import load_tokenizer
from engine.text.vocabulary_search import VocabularySearch
from tests.helpers.server.fake_server import answer_of, error_of
from tests.helpers.server.text_server import TextServer, encoding_threads

BREAKERS = "dry_sequence_breakers"
ROUTES = ["chat", "complete"]


async def _patterns(server: TextServer, route: str = "chat", **body: Any) -> Any:
    answer_of(await getattr(server, route)(**body))
    return server.last_request.sampling.dry_sequence_breakers


@pytest.mark.parametrize("route", ROUTES)
async def test_strings_become_the_models_tokens(server: TextServer, route: str) -> None:
    search = VocabularySearch(load_tokenizer(server.folder))
    default = SAMPLER_PARAMETERS[BREAKERS].strings
    assert await _patterns(server, route, dry_multiplier=0.8) == search.patterns(default)
    strings = ["fox", "the\nquick"]
    found = await _patterns(server, route, dry_multiplier=0.8, dry_sequence_breakers=strings)
    assert found == search.patterns(strings)
    heads = np.concatenate([np.frombuffer(one.heads, "<i4") for one in found])
    assert server.encode("fox")[0] in heads
    assert await _patterns(server, route, dry_multiplier=0.8, dry_sequence_breakers=[]) == ()


@pytest.mark.parametrize("body", [{}, {"dry_multiplier": 0}, {"dry_sequence_breakers": ["a"]}])
async def test_nothing_is_searched_without_dry(server: TextServer, body: dict[str, Any]) -> None:
    assert await _patterns(server, **body) == ()


async def test_it_happens_in_a_thread_and_is_remembered(
    server: TextServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await _patterns(server, dry_multiplier=0.8)
    outside = encoding_threads(monkeypatch)
    assert await _patterns(server, dry_multiplier=0.9) is first
    assert outside == [False]  # the prompt
    await _patterns(server, dry_multiplier=0.8, dry_sequence_breakers=["quick"])
    assert True in outside
    for number in range(40):
        await _patterns(server, dry_multiplier=0.8, dry_sequence_breakers=[f"a{number}"])
    again = await _patterns(server, dry_multiplier=0.8)
    assert again == first
    assert again is not first


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({BREAKERS: ["a"] * 17}, BREAKERS, "16"),
        ({BREAKERS: ["a" * 41]}, BREAKERS, "40"),
        ({BREAKERS: [""]}, BREAKERS, "1"),
        ({BREAKERS: "a"}, BREAKERS, "array"),
        ({"dry_base": 0.9}, "dry_base", "1"),
        ({"dry_allowed_length": 0}, "dry_allowed_length", "1"),
        ({"dry_penalty_last_n": -2}, "dry_penalty_last_n", "-1"),
        ({"dry_multiplier": -1}, "dry_multiplier", "0"),
        ({"dry_multiplier": 1e9}, "dry_multiplier", "100"),
    ],
    ids=str,
)
async def test_bad_values_are_400s_that_say_what_may_be(
    server: TextServer, fields: dict[str, Any], param: str, said: str
) -> None:
    error = error_of(await server.chat(**({"dry_multiplier": 0.8} | fields)))
    assert error["type"] == "invalid_request_error"
    assert error["param"].split("[")[0] == param
    assert said in error["message"], error["message"]
    assert not server.engine.requests
