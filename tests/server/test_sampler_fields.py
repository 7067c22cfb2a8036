"""Every row of the engine's table of sampler parameters: bounds, names, defaults, on the wire."""

import asyncio
import math

import pytest
from pydantic import ValidationError

from engine.contract.generate import ModelInfo
from engine.contract.sampling_params import (
    MAX_STRING_CHARS,
    MAX_STRINGS,
    SAMPLER_PARAMETERS,
    Patterns,
    SamplingParams,
    TokenPattern,
)
from engine.errors import InvalidParameter
from server.protocol.chat import ChatCompletionRequest
from server.protocol.completions import CompletionRequest
from server.text import convert
from server.text.sampler_tokens import SamplerTokens, sampler_strings

INFO = ModelInfo(
    model="m",
    path="",
    architecture="",
    max_model_len=100,
    vocab_size=50,
    dtype="float32",
    created=0,
    num_kv_blocks=1,
    kv_block_size=16,
)
NAMES = [*SAMPLER_PARAMETERS]


def within(one):
    """Some values that a request may give, the bounds among them."""
    if one.kind == Patterns:
        return [[], ["a"], ["é" * MAX_STRING_CHARS] * MAX_STRINGS]
    if one.choices:
        return [*one.choices, float(one.choices[-1])]
    low = one.ge if one.ge is not None else math.nextafter(one.gt, math.inf)
    return [one.kind(value) for value in (low, (low + one.le) / 2, one.le)]


def beyond(one):
    if one.kind == Patterns:
        return [[""], ["a" * (MAX_STRING_CHARS + 1)], ["a"] * (MAX_STRINGS + 1), [1], "a"]
    if one.choices:
        return [min(one.choices) - 1, 1, max(one.choices) + 1, 0.5]
    step = 1 if one.kind is int else 0.001
    return [one.ge - step if one.ge is not None else one.gt, one.le + step]


def sampling(**fields):
    request = CompletionRequest.model_validate({"prompt": [1], **fields})
    asked = convert.completion_requests(request, INFO, [[1]], request_id="r")
    (engine_request,) = asyncio.run(asked)
    return engine_request.sampling


def check_strings(one, strings):
    """They become patterns where the parameter acts, and nothing where it does not."""
    patterns = {one.name: (TokenPattern(b"1234"),)}
    acts = {one.acts_with: SAMPLER_PARAMETERS[one.acts_with].le}
    for fields, expected in (
        ({one.name: strings}, {}),
        ({one.name: strings} | acts, {one.name: tuple(strings)}),
        (acts, {one.name: one.strings}),
    ):
        request = CompletionRequest.model_validate({"prompt": [1], **fields})
        assert sampler_strings(request) == expected
    asked = convert.completion_requests(
        request, INFO, [[1]], request_id="r", tokens=SamplerTokens(patterns)
    )
    (engine_request,) = asyncio.run(asked)
    assert getattr(engine_request.sampling, one.name) == patterns[one.name]


@pytest.mark.parametrize("name", NAMES)
def test_values_within_the_bounds_reach_the_engine(name):
    one = SAMPLER_PARAMETERS[name]
    for wire_name in (name, *one.other_names):
        for value in within(one):
            if one.kind == Patterns:
                check_strings(one, value)
                continue
            expected = one.settled(value) if one.settled else value
            assert sampling(**{wire_name: value}) == SamplingParams(**{name: expected})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", [ChatCompletionRequest, CompletionRequest])
def test_values_beyond_are_refused_and_so_is_another_type(name, model):
    one = SAMPLER_PARAMETERS[name]
    needed = {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}
    for wire_name in (name, *one.other_names):
        for value in (*beyond(one), "1", True, [[]], math.nan):
            with pytest.raises(ValidationError) as refusal:
                model.model_validate({**needed, wire_name: value})
            assert {error["loc"][0] for error in refusal.value.errors()} == {wire_name}


@pytest.mark.parametrize("name", NAMES)
def test_the_neutral_value_is_the_default_and_allowed(name):
    one = SAMPLER_PARAMETERS[name]
    assert getattr(SamplingParams(), name) == one.neutral
    if one.kind == Patterns:
        return
    assert sampling(**{name: one.kind(one.neutral)}) == sampling(**{name: None}) == SamplingParams()


@pytest.mark.parametrize("name", [name for name in NAMES if SAMPLER_PARAMETERS[name].other_names])
def test_two_names_with_two_values_contradict(name):
    one = SAMPLER_PARAMETERS[name]
    low, _, high = within(one)
    for other in one.other_names:
        with pytest.raises(InvalidParameter, match="they mean the same"):
            sampling(**{name: low, other: high})


def test_the_schema_tells_bounds_and_meaning():
    properties = ChatCompletionRequest.model_json_schema()["properties"]
    for name, one in SAMPLER_PARAMETERS.items():
        assert one.text in properties[name]["description"]
        if one.kind == Patterns:
            assert properties[name]["anyOf"][0]["maxItems"] == MAX_STRINGS
            continue
        if one.choices:
            assert properties[name]["anyOf"][0] == {"enum": [*one.choices], "type": "integer"}
            continue
        number, null = properties[name]["anyOf"]
        assert number["type"] == {int: "integer", float: "number"}[one.kind]
        assert number.get("minimum", number.get("exclusiveMinimum")) in (one.ge, one.gt)
        assert number["maximum"] == one.le
        assert null == {"type": "null"}


def test_samplers_act_in_the_order_that_is_sent():
    fields = {"top_p": 0.5, "temperature": 0.7, "top_k": 5, "repetition_penalty": 2.0}
    found = sampling(**fields, samplers=["top_p", "temperature"])
    assert found.order == ("top_p", "temperature")
    assert (found.top_p, found.temperature) == (0.5, 0.7)
    assert (found.top_k, found.repetition_penalty) == (0, 1.0)
    assert sampling(**fields, samplers=None) == sampling(**fields)
    whole = ["penalties", "dry", "temperature", "top_k", "top_p"]
    assert sampling(**fields, samplers=whole) == sampling(**fields)
    assert sampling(typical_p=0.5, top_p=0.5, samplers=["typ_p", "top_p"]).order == (
        "typical_p",
        "top_p",
    )


@pytest.mark.parametrize(
    "bad", [["no_such"], ["top_k", "top_k"], ["top_k", "dry"], "top_k", [1], ["typ_p", "typical_p"]]
)
def test_other_samplers_are_refused(bad):
    with pytest.raises((ValidationError, InvalidParameter)):
        CompletionRequest.model_validate({"prompt": [1], "samplers": bad})
