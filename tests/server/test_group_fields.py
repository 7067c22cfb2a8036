"""How many texts a request makes, which are answered, and what goes with beams, contrastive search
and guidance."""

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError

from engine.contract.groups import BeamParams
from engine.contract.sampling_params import SAMPLER_PARAMETERS, Patterns, SamplingParams
from engine.errors import InvalidParameter
from server.protocol.chat import ChatCompletionRequest
from server.protocol.completions import CompletionRequest
from server.text import convert
from tests.helpers.server.fake_texts import model_info

INFO = model_info(
    "m",
    max_model_len=100,
    vocab_size=50,
    eos_token_ids=(1, 2),
    default_sampling={"temperature": 0.5, "repetition_penalty": 1.3},
)
SEARCH: dict[str, Any] = {"use_beam_search": True}
CONTRAST: dict[str, Any] = {"penalty_alpha": 0.6, "top_k": 4}


def complete(**fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate({"prompt": [1], **fields})


def chat(**fields: Any) -> ChatCompletionRequest:
    messages = [{"role": "user", "content": "hi"}]
    return ChatCompletionRequest.model_validate({"messages": messages, **fields})


def sampling(**fields: Any) -> SamplingParams:
    asked = convert.completion_requests(complete(**fields), INFO, [[1]], request_id="r")
    (request,) = asyncio.run(asked)
    return request.sampling


@pytest.mark.parametrize(
    ("fields", "n", "beams"),
    [
        ({"n": 3}, 3, BeamParams(width=3)),
        ({"best_of": 4}, 1, BeamParams(width=4)),
        ({"n": 2, "best_of": 4}, 2, BeamParams(width=4)),
        ({"n": 2, "beam_width": 4}, 2, BeamParams(width=4)),
        ({"best_of": 4, "beam_width": 4}, 1, BeamParams(width=4)),
        ({"n": 2, "length_penalty": 0.6}, 2, BeamParams(width=2, length_penalty=0.6)),
        ({"n": 2, "length_penalty": 0}, 2, BeamParams(width=2, length_penalty=0)),
        ({"n": 2, "early_stopping": True}, 2, BeamParams(width=2, early_stopping=True)),
        ({"n": 2, "early_stopping": "never"}, 2, BeamParams(width=2, early_stopping="never")),
        ({}, 1, None),
        ({"best_of": 1, "early_stopping": True}, 1, None),
    ],
    ids=str,
)
def test_beam_search(fields: dict[str, Any], n: int, beams: BeamParams | None) -> None:
    found = sampling(**SEARCH, **fields)
    assert (found.n, found.beams, found.temperature) == (n, beams, 0.0)
    assert found.repetition_penalty == 1.0, "the model's defaults are those of draws"
    assert found.num_sequences == (1 if beams is None else beams.width)


def test_the_best_of_what_is_drawn() -> None:
    found = sampling(n=2, best_of=5)
    assert (found.n, found.beams, found.logprobs, found.temperature) == (5, None, 0, 0.5)
    assert sampling(best_of=5, logprobs=3).logprobs == 3
    assert complete(n=2, best_of=5).num_best == 2
    for fields in ({"n": 2, "best_of": 2}, {"best_of": 1}, {"n": 2}, {}):
        assert complete(**fields).num_best is None
        assert sampling(**fields).logprobs is None


@pytest.mark.parametrize("build", [complete, chat])
@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("best_of", {"n": 3, "best_of": 2}),
        ("beam_width", {"n": 3, "beam_width": 2, **SEARCH}),
        ("beam_width", {"best_of": 3, "beam_width": 2, **SEARCH}),
        ("beam_width", {"beam_width": 2}),
        ("length_penalty", {"length_penalty": 0.5}),
        ("early_stopping", {"early_stopping": True}),
        ("early_stopping", {"early_stopping": "never", "use_beam_search": False}),
        ("best_of", {"best_of": 17, **SEARCH}),
        ("n", {"n": 17, **SEARCH}),
        ("temperature", {"temperature": 0.7, "n": 2, **SEARCH}),
        ("logit_bias", {"logit_bias": {"5": 1}, **SEARCH}),
        ("allowed_token_ids", {"allowed_token_ids": [5], **SEARCH}),
        ("bad_words", {"bad_words": ["x"], **SEARCH}),
        ("stop", {"stop": "x", **SEARCH}),
        (
            "repetition_detection",
            {"repetition_detection": {"max_pattern_size": 3, "min_count": 2}} | SEARCH,
        ),
        ("response_format", {"response_format": {"type": "json_object"}, **SEARCH}),
        ("top_k", {**CONTRAST, "top_k": None}),
        ("top_k", {**CONTRAST, "top_k": 1}),
        ("top_k", {**CONTRAST, "top_k": 17}),
        ("top_k", {**CONTRAST, "top_k": -1}),
        ("n", {"n": 2, **CONTRAST}),
        ("best_of", {"best_of": 2, **CONTRAST}),
        ("penalty_alpha", {**CONTRAST, **SEARCH}),
        ("guidance_scale", {"guidance_scale": 2, **CONTRAST}),
        ("guidance_scale", {"guidance_scale": 2, **SEARCH}),
        ("min_tokens", {"min_tokens": 2, **CONTRAST}),
        ("logit_bias", {"logit_bias": {"1": 1}, **CONTRAST}),
        ("bad_words", {"bad_words": ["x"], **CONTRAST}),
        ("samplers", {"samplers": ["top_k"], **CONTRAST}),
        ("grammar", {"grammar": 'root ::= "a"', **CONTRAST}),
        ("negative_prompt", {"negative_prompt": "x"}),
        ("negative_prompt", {"negative_prompt": "x", "guidance_scale": 1}),
    ],
    ids=str,
)
def test_contradictions_are_refused(build: Any, param: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter) as caught:
        build(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize("build", [complete, chat])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("best_of", 0),
        ("best_of", 129),
        ("beam_width", 17),
        ("length_penalty", 11),
        ("length_penalty", "1"),
        ("length_penalty", True),
        ("early_stopping", "always"),
        ("early_stopping", 1),
        ("use_beam_search", 1),
        ("penalty_alpha", -0.1),
        ("penalty_alpha", 1.1),
        ("guidance_scale", -1),
        ("guidance_scale", 21),
        ("negative_prompt", ""),
    ],
)
def test_bad_values_are_refused(build: Any, name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=name):
        build(**{**SEARCH, name: value})


@pytest.mark.parametrize(
    "one",
    [one for one in SAMPLER_PARAMETERS.values() if one.kind != Patterns],
    ids=lambda one: one.name,
)
@pytest.mark.parametrize("search", [SEARCH, CONTRAST], ids=str)
def test_no_draw_is_shaped_in_a_search(one: Any, search: dict[str, Any]) -> None:
    if one.name in search:
        return
    for name in (one.name, *one.other_names):
        for value in {one.neutral, 0 if name == "temperature" else one.neutral}:
            complete(**search, **{name: value})
        most = one.choices[-1] if one.choices else one.le
        other = one.kind(most if most != one.neutral else one.ge or 0.5)
        with pytest.raises(InvalidParameter) as caught:
            complete(**search, **{name: other})
        assert caught.value.param == name


def test_a_search_needs_a_token_and_few_ends() -> None:
    for fields, param in (
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop_token_ids": list(range(3, 18))}, "stop_token_ids"),
    ):
        with pytest.raises(InvalidParameter) as caught:
            sampling(**SEARCH, n=2, **fields)
        assert caught.value.param == param
    assert sampling(**SEARCH, n=2, stop_token_ids=list(range(3, 17))).beams is not None
    assert sampling(**SEARCH, n=2, stop_token_ids=list(range(3, 19)), ignore_eos=True).beams
