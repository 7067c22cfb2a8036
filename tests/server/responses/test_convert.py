"""Items as messages of a chat."""

from typing import Any

from server.protocol.response_items import read_items
from server.responses.convert import chat_messages


def messages(*items: Any) -> list[dict[str, Any]]:
    return chat_messages(read_items(list(items)))


def call(name: str) -> dict[str, Any]:
    return {"type": "function_call", "call_id": f"call_{name}", "name": name, "arguments": "{}"}


def as_call(name: str) -> dict[str, Any]:
    function = {"name": name, "arguments": "{}"}
    return {"id": f"call_{name}", "type": "function", "function": function}


REASONING = {
    "type": "reasoning",
    "summary": [],
    "content": [{"type": "reasoning_text", "text": "hm"}],
}


def test_what_the_assistant_did_in_a_row_is_one_message() -> None:
    assert messages(
        {"role": "user", "content": "a"},
        REASONING,
        {"role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
        call("f"),
        call("g"),
        {"type": "function_call_output", "call_id": "call_f", "output": "1"},
        call("h"),
    ) == [
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "reasoning_content": "hm",
            "content": "b",
            "tool_calls": [as_call("f"), as_call("g")],
        },
        {"role": "tool", "tool_call_id": "call_f", "content": "1"},
        {"role": "assistant", "tool_calls": [as_call("h")]},
    ]


def test_two_answers_stay_two_messages() -> None:
    answers = [{"role": "assistant", "content": text} for text in "ab"]
    assert messages(*answers) == answers
    assert messages(call("f"), answers[0]) == [
        {"role": "assistant", "tool_calls": [as_call("f")]},
        answers[0],
    ]


def test_reasoning_alone_is_a_message_without_text() -> None:
    [message] = messages(REASONING)
    assert message == {"role": "assistant", "reasoning_content": "hm", "content": ""}


def test_reasoning_without_text_leaves_nothing() -> None:
    assert messages({"type": "reasoning", "id": "rs_1", "summary": []}, call("f")) == [
        {"role": "assistant", "tool_calls": [as_call("f")]}
    ]


def test_several_parts_stay_parts() -> None:
    parts = [{"type": "input_text", "text": text} for text in "ab"]
    [message] = messages({"role": "user", "content": parts})
    assert message["content"] == [{"type": "text", "text": text} for text in "ab"]
