"""Which request bodies are taken, and what is said of those that are not."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from engine.errors import InvalidParameter, UnsupportedFeature
from server.protocol.chat import ChatCompletionRequest
from server.protocol.common import (
    MAX_PROMPT_TOKENS,
    MAX_TOKEN_COUNT,
    NO_EFFECT_FIELDS,
    UNSUPPORTED_FIELDS,
    ModelRequest,
    TokenIds,
    read_ids,
)
from server.protocol.completions import CompletionRequest
from server.protocol.prompts import MAX_PROMPTS
from server.protocol.tokenize import DetokenizeRequest, TokenizeRequest

USER = {"role": "user", "content": "hi"}


def chat(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate({"messages": [USER], **fields})


def complete(**fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate({"prompt": "hi", **fields})


GOOD: dict[str, list[Any]] = {
    "model": [""],
    "max_completion_tokens": [1, 5.0, -1],
    "max_tokens": [-1, -1.0],
    "n_predict": [5],
    "repeat_penalty": [1.1],
    "min_tokens": [0],
    "temperature": [0, 2],
    "top_p": [0, 1.0],
    "top_k": [-1, 0, 10**9],
    "min_p": [1],
    "typical_p": [1],
    "seed": [-(2**63), 2**63 - 1],
    "n": [128],
    "stop": ["x", [], ["x"] * 16],
    "stop_token_ids": [[0, 5.0]],
    "logit_bias": [{"5": -100, "0": 100.0}, [[5, -100], ["a", 100.0], [0, False]]],
    "bad_words": [["a" * 64] * 512],
    "allowed_token_ids": [[0, 5.0]],
    "presence_penalty": [-2],
    "frequency_penalty": [2],
    "repetition_penalty": [0.01],
    "prompt_logprobs": [20],
    "stream_options": [None],
    "priority": [-5],
    "cache_salt": ["x"],
    "truncate_prompt_tokens": [-1, 1],
}
SHARED_GOOD: list[dict[str, Any]] = [
    *[{name: value} for name, good in GOOD.items() for value in good],
    {"n_predict": -1, "max_tokens": -1},
    {"n_predict": 5, "max_tokens": 5, "max_completion_tokens": None},
    {"repeat_penalty": 1, "repetition_penalty": 1.0},
    {"stream": True, "stream_options": {}},
    {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": True}},
]
SHARED_BAD: dict[str, list[Any]] = {
    "model": [5],
    "max_completion_tokens": [0, -2, 1.5, "5", True],
    "max_tokens": [-2, -1.5],
    "n_predict": [-2, "5"],
    "repeat_penalty": [0, "1.1"],
    "min_tokens": [-1],
    "temperature": [-0.1, 2.1, "1", True, float("nan"), float("inf")],
    "top_p": [-0.1, 1.1],
    "top_k": [-2, 0.5],
    "min_p": [1.1],
    "typical_p": [0],
    "seed": [2**63, -(2**63) - 1, 1e300],
    "n": [0, 129],
    "stop": ["", ["x", ""], ["x"] * 17, [1]],
    "stop_token_ids": [[-1], [True], ["1"], 1],
    "logit_bias": [{"x": 1}, {"-1": 1}, {"1": 101}, {"1": float("nan")}, {"1": "1"}, [1]],
    "presence_penalty": [-2.1],
    "frequency_penalty": [2.1],
    "repetition_penalty": [0, -1],
    "prompt_logprobs": [21, -1],
    "stream": ["yes", 1],
    "stream_options": [{}, 5],
    "priority": [2**31, "high"],
    "cache_salt": ["", 5],
    "truncate_prompt_tokens": [0, -2],
    "ignore_eos": ["no"],
    "echo": [1],
}


def bad_field(error: Exception) -> str | None:
    if isinstance(error, InvalidParameter):
        return error.param
    assert isinstance(error, ValidationError)
    return str(error.errors()[0]["loc"][0])


@pytest.mark.parametrize("fields", SHARED_GOOD, ids=str)
def test_good_values_pass_in_both_routes(fields: dict[str, Any]) -> None:
    chat(**fields)
    complete(**fields)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, bad in SHARED_BAD.items() for value in bad], ids=str
)
def test_bad_values_are_refused_in_both_routes(name: str, value: Any) -> None:
    for build in (chat, complete):
        with pytest.raises((ValidationError, InvalidParameter)) as caught:
            build(**{name: value})
        assert bad_field(caught.value) == name


@pytest.mark.parametrize("build", [chat, complete])
def test_null_means_the_default(build: Any) -> None:
    required = {"messages", "prompt"}
    nulls = dict.fromkeys(set(build().__class__.model_fields) - required)
    assert build(**nulls).model_dump() == build().model_dump()


@pytest.mark.parametrize("build", [chat, complete])
def test_every_unsupported_field_is_refused_by_name(build: Any) -> None:
    for name in UNSUPPORTED_FIELDS.keys() - type(build()).model_fields.keys():
        with pytest.raises(UnsupportedFeature, match=name) as caught:
            build(**{name: {"a": 1}})
        assert caught.value.param == name


@pytest.mark.parametrize("build", [chat, complete])
def test_neutral_and_no_effect_values_pass_and_are_not_reported(build: Any) -> None:
    for name, neutral in UNSUPPORTED_FIELDS.items():
        for value in (None, *neutral):
            assert build(**{name: value}).ignored_fields() == []
    assert build(**dict.fromkeys(NO_EFFECT_FIELDS, "x")).ignored_fields() == []


def test_a_supported_field_is_in_no_table() -> None:
    for model in (ChatCompletionRequest, CompletionRequest, TokenizeRequest):
        assert not model.model_fields.keys() & NO_EFFECT_FIELDS.keys()
    assert not CompletionRequest.model_fields.keys() & UNSUPPORTED_FIELDS.keys()
    assert ChatCompletionRequest.model_fields.keys() & UNSUPPORTED_FIELDS.keys() == {
        *("tools", "tool_choice", "reasoning_effort"),
    }


def test_unknown_fields_are_kept_aside_by_name() -> None:
    request = chat(top_z=1, user="u", tfs_z=None)
    assert sorted(request.ignored_fields()) == ["tfs_z", "top_z"]
    assert ModelRequest.model_validate({}).ignored_fields() == []


@pytest.mark.parametrize(
    "messages",
    [
        [],
        None,
        "hi",
        {},
        [5],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"content": "hi"}],
        [{"role": "assistant"}],
        [{"role": "assistant", "content": None, "tool_calls": []}],
        [{"role": "function", "content": "x"}],
        [{"role": "User", "content": "x"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": {"type": "text", "text": "x"}}],
        [{"role": "user", "content": ["x"]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "text", "text": 5}]}],
        [{"role": "user", "content": [{"type": "poem", "text": "x"}]}],
        [{"role": "user", "content": [{"type": ["text"], "text": "x"}]}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}],
        [{"role": "assistant", "tool_calls": [{"type": "x", "function": {}}]}],
    ],
    ids=str,
)
def test_bad_messages_are_refused(messages: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        chat(messages=messages)
    assert caught.value.errors()[0]["loc"][0] == "messages"


@pytest.mark.parametrize("kind", ["input_audio", "input_file", "file", "video_url"])
def test_media_parts_are_refused_by_place(kind: str) -> None:
    parts = [{"type": "text", "text": "x"}, {"type": kind, kind: {"url": "http://x"}}]
    for model in (ChatCompletionRequest, TokenizeRequest):
        with pytest.raises(UnsupportedFeature) as caught:
            model.model_validate({"messages": [USER, {"role": "user", "content": parts}]})
        assert caught.value.param == "messages[1].content[1]"


def test_content_parts_are_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]
    [message] = chat(messages=[{"role": "user", "content": parts}]).messages
    assert message.content == [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert message.text() == "a\nb"
    [message] = chat(messages=[{"role": "user", "content": []}]).messages
    assert message.text() == ""


@pytest.mark.parametrize(
    ("name", "value", "other", "other_value"),
    [
        ("n_predict", 5, "max_tokens", 6),
        ("n_predict", -1, "max_tokens", 5),
        ("n_predict", 5, "max_completion_tokens", 6),
        ("repeat_penalty", 1.1, "repetition_penalty", 1.2),
    ],
)
@pytest.mark.parametrize("build", [chat, complete])
def test_two_names_of_one_thing_must_agree(
    build: Any, name: str, value: float, other: str, other_value: float
) -> None:
    with pytest.raises(InvalidParameter, match=f"{name} is {value} and {other} is {other_value}"):
        build(**{name: value, other: other_value})


def test_chat_only_rules() -> None:
    for name in ("max_tokens", "n_predict"):
        with pytest.raises(ValidationError, match="at least 1, or -1"):
            chat(**{name: 0})
        complete(**{name: 0})
    with pytest.raises(ValidationError):
        chat(logprobs=1)
    with pytest.raises(ValidationError):
        chat(logprobs=True, top_logprobs=21)
    with pytest.raises(InvalidParameter, match="top_logprobs"):
        chat(top_logprobs=1)
    with pytest.raises(InvalidParameter, match="top_logprobs"):
        chat(top_logprobs=1, logprobs=False)
    with pytest.raises(InvalidParameter, match="continue_final_message"):
        chat(add_generation_prompt=True, continue_final_message=True)
    chat(top_logprobs=0)
    chat(continue_final_message=True)
    with pytest.raises(InvalidParameter, match="prompt_logprobs"):
        chat(prompt_logprobs=0, stream=True)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([1.0, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        ([[1.0]], [[1]]),
    ],
    ids=str,
)
def test_prompts_are_read_as_lists(given: Any, read: Any) -> None:
    assert complete(prompt=given).prompt == read


@pytest.mark.parametrize(
    "prompt",
    [
        *(None, "", 5, {}, [], [""], ["a", ""], [[]], [[1], []], ["a", 1], [1, "a"], [[1], 2]),
        *([True], [[False]], [-1], [[-1]], [1.5], [2**31], [1e300], [None], [[["a"]]]),
        ["a"] * (MAX_PROMPTS + 1),
    ],
    ids=lambda prompt: str(prompt)[:20],
)
def test_bad_prompts_are_refused(prompt: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        complete(prompt=prompt)
    assert caught.value.errors()[0]["loc"] == ("prompt",)


def test_token_ids_are_looked_at_once() -> None:
    """And neither copied nor given to pydantic, which takes a tenth of a second for a million; of
    a million that are wrong one is told."""
    adapter: TypeAdapter[list[int]] = TypeAdapter(TokenIds)
    ids = [0, MAX_TOKEN_COUNT]
    assert adapter.validate_python(ids, strict=True) is ids
    assert complete(prompt=ids).prompt[0] is ids
    for wrong in ([1, -1, -1], [None, None], [True, 2**31], [1.5, "a"], [1.0, "a", "b"]):
        with pytest.raises(ValidationError) as caught:
            adapter.validate_python(wrong, strict=True)
        [error] = caught.value.errors()
        assert error["loc"][0] == [read_ids([one]) is None for one in wrong].index(True)
    with pytest.raises(ValidationError) as caught:
        adapter.validate_python([-1] * (MAX_PROMPT_TOKENS + 1), strict=True)
    assert [error["type"] for error in caught.value.errors()] == ["too_long"]


def test_completion_only_rules() -> None:
    complete(max_tokens=0)
    complete(logprobs=0)
    for bad in (True, 21, -1, "1"):
        with pytest.raises(ValidationError):
            complete(logprobs=bad)
    with pytest.raises(ValidationError):
        CompletionRequest.model_validate({})


def test_tokenize_takes_one_source() -> None:
    TokenizeRequest.model_validate({"prompt": ""})
    TokenizeRequest.model_validate({"messages": [USER], "prompt": None})
    for body in ({}, {"prompt": "x", "messages": [USER]}, {"prompt": None}):
        with pytest.raises(InvalidParameter):
            TokenizeRequest.model_validate(body)
    for bad in ([-1], ["a"], "a", None, [True]):
        with pytest.raises(ValidationError):
            DetokenizeRequest.model_validate({"tokens": bad})
    assert DetokenizeRequest.model_validate({"tokens": [1.0]}).tokens == [1]


def test_every_request_property_is_described_and_bounded() -> None:
    """What the document leaves open, clients and fuzzers must guess."""
    for model in (ChatCompletionRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest):
        for name, schema in model.model_json_schema()["properties"].items():
            if name in ("prompt", "messages"):
                continue
            if name in ("stream_options", "repetition_detection", "kv_transfer_params"):
                continue  # objects with fields of their own
            if (model, name) == (TokenizeRequest, "content"):  # the same as its prompt
                continue
            assert "description" in schema, name
            for variant in schema.get("anyOf", [schema]):
                if "enum" in variant:
                    continue
                bounds = {
                    "integer": {"minimum", "maximum"},
                    "number": {"maximum"},
                    "string": {"maxLength"},
                    "array": {"maxItems"},
                    "object": {"maxProperties"},
                }.get(variant["type"], set())
                assert bounds <= variant.keys(), (model.__name__, name, variant)
