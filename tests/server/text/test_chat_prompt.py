"""What a chat's template is given."""

import json
from typing import Any

import pytest

from engine.errors import InvalidParameter
from engine.text.chat_format import ChatFormat
from server.protocol.chat import ChatCompletionRequest
from server.text.chat_prompt import ChatPrompt, chat_prompt

USER = {"role": "user", "content": "hi"}
KNOWS_TOOLS = ChatFormat.of("{% if tools %}{{ messages }}{% endif %}")
KNOWS_NOTHING = ChatFormat.of("{{ messages }}")
CALL = {"id": "call_1", "function": {"name": "f", "arguments": '{"city": "Rome"}'}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "strict": False}}


def prompt_of(request: ChatCompletionRequest, chat_format: ChatFormat = KNOWS_TOOLS) -> ChatPrompt:
    return chat_prompt(request, request.messages, chat_format)


def prompt(chat_format: ChatFormat, **fields: Any) -> ChatPrompt:
    request = ChatCompletionRequest.model_validate({"messages": [USER], **fields})
    return prompt_of(request, chat_format)


def test_template_messages() -> None:
    call = {"id": "c", "function": {"name": "f", "arguments": '{"city": "Rome"}'}}
    broken = {"function": {"name": "f", "arguments": "{not json"}}
    request = ChatCompletionRequest.model_validate(
        {
            "messages": [
                {"role": "developer", "content": "d", "name": "n"},
                {"role": "assistant", "tool_calls": [call, broken]},
                {"role": "tool", "content": "t", "tool_call_id": "c", "extra": 1},
                {"role": "assistant", "refusal": "no"},
            ]
        }
    )
    assert prompt_of(request).messages == [
        {"role": "developer", "content": "d", "name": "n"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "c",
                    "type": "function",
                    "function": {"name": "f", "arguments": '{"city": "Rome"}'},
                },
                {"type": "function", "function": {"name": "f", "arguments": "{not json"}},
            ],
        },
        {"role": "tool", "content": "t", "tool_call_id": "c", "extra": 1},
        {"role": "assistant", "content": "no"},
    ]


def test_calls_are_not_read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten megabytes of them took the event loop seconds."""
    texts: list[str] = []
    monkeypatch.setattr(json, "loads", texts.append)
    for chat_format in (KNOWS_TOOLS, KNOWS_NOTHING):
        call = {"function": {"name": "f", "arguments": '{"a": [' + "1.5, " * 5000 + "{}]}"}}
        prompt(chat_format, messages=[{"role": "assistant", "tool_calls": [call]}])
    assert texts == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (True, False)),
        ({"add_generation_prompt": False}, (False, False)),
        ({"continue_final_message": True}, (False, True)),
        ({"continue_final_message": True, "add_generation_prompt": False}, (False, True)),
    ],
)
def test_template_options(fields: dict[str, Any], expected: tuple[bool, bool]) -> None:
    request = ChatCompletionRequest.model_validate(
        {"messages": [USER], "chat_template_kwargs": {"mood": "glad"}, **fields}
    )
    options = prompt_of(request).options
    assert options.pop("mood") == "glad"
    assert (options["add_generation_prompt"], options["continue_final_message"]) == expected


@pytest.mark.parametrize("name", ["messages", "tools", "self", "add_generation_prompt"])
def test_template_kwargs_cannot_replace_fields(name: str) -> None:
    request = ChatCompletionRequest.model_validate(
        {"messages": [USER], "chat_template_kwargs": {name: 1}}
    )
    with pytest.raises(InvalidParameter, match=name):
        prompt_of(request)


def test_tools_are_in_transformers_form() -> None:
    assert prompt(KNOWS_TOOLS, tools=[TOOL]).options["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "f",
                "description": "d",
                "parameters": {"type": "object", "properties": {}},
            },
        }
    ]
    for fields in ({}, {"tools": []}, {"tools": [TOOL], "tool_choice": "none"}):
        for chat_format in (KNOWS_TOOLS, KNOWS_NOTHING):
            rendered = prompt(chat_format, **fields)
            assert "tools" not in rendered.options
            assert rendered.messages == [USER]


def test_a_template_without_tools_gets_them_as_text() -> None:
    rendered = prompt(KNOWS_NOTHING, tools=[TOOL])
    system, user = rendered.messages
    assert (system["role"], user) == ("system", USER)
    line = next(line for line in system["content"].splitlines() if line.startswith('{"name": "f"'))
    assert json.loads(line)["description"] == "d"
    assert "tools" not in rendered.options
    own = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    [merged, _] = prompt(KNOWS_NOTHING, tools=[TOOL], messages=[own, USER]).messages
    assert merged == {"role": "system", "content": "Be brief.\n\n" + system["content"]}
    no_system = ChatFormat.of("{{ raise_exception('System role not supported') }}")
    [only] = prompt(no_system, tools=[TOOL]).messages
    assert only == {"role": "user", "content": "hi\n\n" + system["content"]}


def test_a_template_without_calls_gets_them_as_text() -> None:
    messages = [
        USER,
        {"role": "assistant", "content": "Wait.", "tool_calls": [CALL, {**CALL, "id": "call_2"}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "warm"},
        {"role": "tool", "tool_call_id": "?", "content": [{"type": "text", "text": "cold"}]},
        {"role": "user", "content": "So?"},
    ]
    line = '{"name": "f", "arguments": {"city": "Rome"}}'
    assert prompt(KNOWS_NOTHING, messages=messages).messages == [
        USER,
        {"role": "assistant", "content": f"Wait.\n{line}\n{line}"},
        {
            "role": "user",
            "content": "Result of f: warm\n\nResult of the function: cold\n\nSo?",
        },
    ]
    for given, written in (
        ({"city": "Rome"}, '{"city": "Rome"}'),
        (' {"a":\r\n  [1.50,\n"\\n"]}\n', '{"a":    [1.50, "\\n"]}'),
        ("{not\njson", '"{not\\njson"'),
        ("[1]", '"[1]"'),
    ):
        call = {"function": {"name": "f\n", "arguments": given}}
        asked = [{"role": "assistant", "tool_calls": [call]}, USER]
        text = prompt(KNOWS_NOTHING, messages=asked).messages[0]["content"]
        assert text == f'{{"name": "f\\n", "arguments": {written}}}'
    assert prompt(KNOWS_TOOLS, messages=messages).messages[2]["role"] == "tool"
    knows_calls = ChatFormat.of("{{ messages[0].tool_calls }}")
    assert prompt(knows_calls, messages=messages).messages[2]["role"] == "tool"
    # What is told of calls in plain text and what is shown of earlier ones must agree.
    told = prompt(knows_calls, messages=messages, tools=[TOOL]).messages
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]


def test_mistral_gets_the_ids_that_it_takes() -> None:
    mistral = ChatFormat.of(
        "{% if tools %}{{ raise_exception('Tool call IDs should be alphanumeric strings') }}"
    )
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "abcDEF123"}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "warm"},
    ]
    asked, told = prompt(mistral, messages=messages).messages
    first, second = (call["id"] for call in asked["tool_calls"])
    assert (first, second) == (told["tool_call_id"], "abcDEF123")
    assert len(first) == 9
    assert first.isalnum()


def test_reasoning_effort_becomes_what_the_template_knows() -> None:
    def options(template: str, **fields: Any) -> dict[str, Any]:
        given = prompt(ChatFormat.of(template), **fields).options
        names = ("reasoning_effort", "enable_thinking", "thinking")
        return {name: given[name] for name in names if name in given}

    effort, switch = "{{ reasoning_effort }}", "{% if enable_thinking %}"
    assert options(effort, reasoning_effort="high") == {"reasoning_effort": "high"}
    assert options(switch, reasoning_effort="low") == {"enable_thinking": True}
    assert options(switch, reasoning_effort="none") == {"enable_thinking": False}
    assert options("{% if thinking %}", reasoning_effort="none") == {"thinking": False}
    assert options(switch) == {}
    assert options("", reasoning_effort="none") == {}
    kwargs = {"enable_thinking": False}
    assert options(switch, reasoning_effort="high", chat_template_kwargs=kwargs) == kwargs
    with pytest.raises(InvalidParameter, match="has no option for reasoning effort"):
        options("", reasoning_effort="low")
