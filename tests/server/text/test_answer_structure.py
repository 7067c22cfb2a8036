"""Which form an answer is held to."""

import json
from typing import Any

import pytest

from engine.contract.structure import StructureKind
from engine.errors import EngineError, InvalidParameter, UnsupportedFeature
from engine.text.chat_format import ChatFormat
from engine.text.tool_calls.parsers import TOOL_CALL_PARSERS
from server.protocol.chat import ChatCompletionRequest
from server.text.answer_format import AnswerFormat
from server.text.answer_structure import answer_structure

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
JSON_FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
NAMED = {"type": "function", "function": {"name": "g"}}
HERMES = "{% if tools %}<tool_call>{% endif %}"
THINKS = "{% if tools %}<tool_call></think>{% endif %}{% if enable_thinking %}{% endif %}"
MENTIONS = "{% if tools %}<tool_call></think>{% endif %}"
CODER = "{% if tools %}<tool_call><function={% endif %}"


def tools(**of_f: Any) -> list[dict[str, Any]]:
    f = {"name": "f", "parameters": SCHEMA, **of_f}
    return [{"type": "function", "function": f}, {"type": "function", "function": {"name": "g"}}]


def form(template: str = HERMES, prompt_end: str = "assistant\n", **fields: Any) -> Any:
    """The structure, of tags as they are written."""
    body = ChatCompletionRequest.model_validate(
        {"messages": [{"role": "user", "content": "hi"}], **fields}
    )
    answers = AnswerFormat.of(body, ChatFormat.of(template), prompt_end)
    structure = answer_structure(body, answers)
    if structure is None or structure.kind is not StructureKind.TAGS:
        return structure
    return json.loads(structure.text)


def test_free_text() -> None:
    assert form() is None
    assert form(tools=tools()) is None
    assert form(tools=tools(strict=False), tool_choice="auto") is None
    assert form(tools=tools(strict=True), tool_choice="none") is None


def test_required_is_calls_only() -> None:
    tags = form(tools=tools(), tool_choice="required")
    assert [tag["begin"] for tag in tags["tags"]] == [
        f'<tool_call>\n{{"name": "{name}", "arguments": ' for name in "fg"
    ]
    assert [tag["end"] for tag in tags["tags"]] == ["}\n</tool_call>"] * 2
    assert [tag["schema"] for tag in tags["tags"]] == [SCHEMA, {"type": "object", "properties": {}}]
    assert (tags["has_text"], tags["at_least_one"], tags["at_most_one"]) == (False, True, False)
    one = form(tools=tools(), tool_choice="required", parallel_tool_calls=False)
    assert one["at_most_one"]


def test_a_named_function_is_one_call_of_it() -> None:
    tags = form(tools=tools(), tool_choice=NAMED)
    assert ['"g"' in tag["begin"] for tag in tags["tags"]] == [True]
    assert (tags["has_text"], tags["at_least_one"], tags["at_most_one"]) == (False, True, True)


def test_strict_functions_hold_calls_that_need_not_come() -> None:
    tags = form(tools=tools(strict=True))
    assert [tag["schema"] for tag in tags["tags"]] == [SCHEMA, {"type": "object"}]
    assert (tags["has_text"], tags["at_least_one"]) == (True, False)
    assert tags["triggers"] == ["<tool_call>"]


def test_reasoning_comes_before_calls() -> None:
    for end in ("assistant\n", "assistant\n<think>\n"):
        assert form(THINKS, end, tools=tools(), tool_choice="required")["has_text"]
    assert form(MENTIONS, "<think>\n", tools=tools(), tool_choice="required")["has_text"]
    ended = "assistant\n<think>\n\n</think>\n\n"
    assert not form(THINKS, ended, tools=tools(), tool_choice="required")["has_text"]
    assert not form(MENTIONS, tools=tools(), tool_choice="required")["has_text"]


def test_reasoning_comes_before_json() -> None:
    tags = form(THINKS, response_format=JSON_FORM)
    assert tags["tags"] == [{"begin": "</think>\n\n", "schema": SCHEMA, "end": ""}]
    assert (tags["at_least_one"], tags["at_most_one"], tags["has_text"]) == (True, True, True)
    ended = "assistant\n<think>\n\n</think>\n\n"
    for structure in (
        form(THINKS, ended, response_format=JSON_FORM),
        form(HERMES, response_format=JSON_FORM),
        form(MENTIONS, response_format=JSON_FORM),
        form(THINKS, "<think>\n", structured_outputs={"regex": "a+"}),
    ):
        assert structure.kind in (StructureKind.JSON_SCHEMA, StructureKind.REGEX)


def test_calls_or_an_answer_of_a_form() -> None:
    tags = form(tools=tools(), response_format=JSON_FORM)
    assert (tags["answer"], tags["has_text"]) == (SCHEMA, False)
    tags = form(tools=tools(), response_format=JSON_FORM, tool_choice="required")
    assert tags["answer"] is None
    with pytest.raises(UnsupportedFeature, match="cannot be combined with tools"):
        form(tools=tools(), structured_outputs={"regex": "a+"})
    assert form(tools=tools(), tool_choice="none", response_format=JSON_FORM).kind == "json_schema"


def test_notations_without_json() -> None:
    assert form(CODER, tools=tools(), tool_choice="required")["triggers"] == ['{"name": "']
    with pytest.raises(UnsupportedFeature, match="leave strict out") as caught:
        form(CODER, tools=tools(strict=True))
    assert caught.value.param == "tools[0].function.strict"
    allowed = [{"type": "function", "function": {"name": "f"}}]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": allowed}}
    with pytest.raises(UnsupportedFeature) as caught:
        form(CODER, tools=tools(strict=True)[::-1], tool_choice=choice)
    assert caught.value.param == "tools[1].function.strict"


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="ignore_eos"):
        form(tools=tools(), tool_choice="required", ignore_eos=True)
    with pytest.raises(EngineError, match="limit"):
        form(tools=tools(parameters={"enum": ["x" * 200_000]}), tool_choice="required")


@pytest.mark.parametrize("name", TOOL_CALL_PARSERS)
def test_parsers_read_what_is_forced(name: str) -> None:
    parser_class = TOOL_CALL_PARSERS[name]  # type: ignore[index]
    syntax = parser_class.syntax
    if syntax is None:
        return
    calls = [syntax.begin.format(name=each) + '{"city": "}"}' + syntax.end for each in "fg"]
    parser = parser_class({"f": {}, "g": {}})
    pieces = parser.add(syntax.separator.join(calls)) + parser.finish()
    assert [type(piece).__name__ for piece in pieces] == ["CallStart", "Arguments"] * 2
    assert all(call.startswith(syntax.trigger) for call in calls)
