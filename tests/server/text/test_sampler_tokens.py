"""Words and tokens that a request bans, allows or favours, on their way to the engine."""

from typing import Any

import numpy as np
import pytest

from engine.contract.sampling_params import RepetitionDetection, SamplingParams
from tests.helpers.server.fake_server import answer_of, error_of
from tests.helpers.server.text_server import EOS, VOCAB_SIZE, TextServer, encoding_threads

ROUTES = ["chat", "complete"]


async def _sampling(server: TextServer, route: str = "chat", **body: Any) -> SamplingParams:
    answer_of(await getattr(server, route)(**body))
    return server.last_request.sampling


@pytest.mark.parametrize("route", ROUTES)
async def test_bad_words_are_banned_as_they_are_and_behind_a_space(
    server: TextServer, route: str
) -> None:
    found = (await _sampling(server, route, bad_words=["fox", " the", "\n"])).bad_words
    expected = ["fox", " fox", " the", "the", "\n"]
    assert found == tuple(tuple(server.encode(word)) for word in expected)
    assert (await _sampling(server, route, bad_words=[])).bad_words == ()


@pytest.mark.parametrize("route", ROUTES)
async def test_a_bias_of_a_text_is_one_of_each_of_its_tokens(
    server: TextServer, route: str
) -> None:
    text = "quick brown"
    assert len(server.encode(text)) > 1
    pairs = [[text, -2.5], [7, 3], [8.0, 1], ["\n", False], [9, False]]
    sampling = await _sampling(server, route, logit_bias=pairs)
    assert sampling.logit_bias == dict.fromkeys(server.encode(text), -2.5) | {7: 3, 8: 1}
    assert sampling.bad_words == (*[(one,) for one in server.encode("\n")], (9,))
    assert (await _sampling(server, route, logit_bias=[])).logit_bias == {}
    assert (await _sampling(server, route, logit_bias={"7": 3})).logit_bias == {7: 3.0}


@pytest.mark.parametrize("route", ROUTES)
async def test_allowed_tokens_reach_the_engine_sorted(server: TextServer, route: str) -> None:
    sampling = await _sampling(server, route, allowed_token_ids=[9, EOS, 9, 4.0])
    assert sampling.allowed_token_ids == np.array([EOS, 4, 9], dtype="<i4").tobytes()
    assert (await _sampling(server, route)).allowed_token_ids is None


@pytest.mark.parametrize("route", ROUTES)
async def test_what_ends_repetitions_reaches_the_engine(server: TextServer, route: str) -> None:
    wanted = {"max_pattern_size": 20, "min_count": 4}
    found = (await _sampling(server, route, repetition_detection=wanted)).repetition_detection
    assert found == RepetitionDetection(min_pattern_size=1, max_pattern_size=20, min_count=4)
    off = {"max_pattern_size": 0, "min_count": 2, "min_pattern_size": 3}
    assert (await _sampling(server, route, repetition_detection=off)).repetition_detection is None


async def test_many_words_are_tokenised_in_a_thread(
    server: TextServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = encoding_threads(monkeypatch)
    await _sampling(server, bad_words=["fox"])
    assert True not in outside
    words = [f"{number:03}" + "x" * 61 for number in range(512)]
    found = (await _sampling(server, bad_words=words)).bad_words
    assert True in outside
    assert len(found) == 2 * len(words)


def detection(max_size: int, min_count: int, min_size: int = 1) -> dict[str, Any]:
    sizes = {"max_pattern_size": max_size, "min_pattern_size": min_size}
    return {"repetition_detection": {**sizes, "min_count": min_count}}


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"bad_words": [""]}, "bad_words[0]", "1"),
        ({"bad_words": ["a" * 65]}, "bad_words[0]", "64"),
        ({"bad_words": ["a"] * 513}, "bad_words", "512"),
        ({"bad_words": "a"}, "bad_words", "array"),
        ({"bad_words": [1]}, "bad_words[0]", "string"),
        ({"allowed_token_ids": []}, "allowed_token_ids", "1"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids[0]", "0"),
        ({"allowed_token_ids": ["1"]}, "allowed_token_ids[0]", "integer"),
        ({"allowed_token_ids": [VOCAB_SIZE]}, "allowed_token_ids", str(VOCAB_SIZE - 1)),
        ({"allowed_token_ids": [1] * (2**18 + 1)}, "allowed_token_ids", str(2**18)),
        ({"logit_bias": [[VOCAB_SIZE, 1]]}, "logit_bias", str(VOCAB_SIZE - 1)),
        ({"logit_bias": [["a"]]}, "logit_bias[0]", "2"),
        ({"logit_bias": [["a", 1, 1]]}, "logit_bias[0]", "2"),
        ({"logit_bias": [["", 1]]}, "logit_bias[0]", "64"),
        ({"logit_bias": [["a" * 65, 1]]}, "logit_bias[0]", "64"),
        ({"logit_bias": [["a", 101]]}, "logit_bias[0]", "100"),
        ({"logit_bias": [["a", True]]}, "logit_bias[0]", "false"),
        ({"logit_bias": [["a", None]]}, "logit_bias[0]", "false"),
        ({"logit_bias": [[True, 1]]}, "logit_bias[0]", "token id"),
        ({"logit_bias": [[-1, 1]]}, "logit_bias[0]", "token id"),
        ({"logit_bias": [[1.5, 1]]}, "logit_bias[0]", "token id"),
        ({"logit_bias": [["a", 1]] * 1025}, "logit_bias", "1024"),
        ({"logit_bias": ["a", 1]}, "logit_bias[0]", "array"),
        ({"logit_bias": "a"}, "logit_bias", "object"),
        ({"repetition_detection": {}}, "repetition_detection.max_pattern_size", "required"),
        (detection(129, 2), "repetition_detection.max_pattern_size", "128"),
        (detection(9, 1), "repetition_detection.min_count", "2"),
        (detection(2, 2, 3), "repetition_detection.min_pattern_size", "at most"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_bad_values_are_400s_that_say_what_may_be(
    server: TextServer, fields: dict[str, Any], param: str, said: str
) -> None:
    error = error_of(await server.chat(**fields))
    assert error["param"] == param
    assert said in error["message"], error["message"]
    assert not server.engine.requests
