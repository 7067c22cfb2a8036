"""Calls of functions and reasoning in chats: what goes to the template, what comes back."""

import json
import random
from pathlib import Path
from typing import Any

import openai
import pytest
from tokenizers import Tokenizer

from server.protocol.tools import MAX_TOOLS_BYTES
from tests.helpers.server.fake_server import answer_of, error_of
from tests.helpers.server.text_server import (
    MODEL,
    TextServer,
    events_of,
    text_info,
    write_tokenizer,
)

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
TEMPLATE = (
    "{% if tools %}{% for t in tools %}{{ t.function.parameters | tojson }}{% endfor %}"
    "<tool_call>{% endif %}"
    "{% if messages[0].content == 'loop' %}{% for i in range(99999) %}{% for t in tools %}"
    "{% for p in t.function.parameters.properties %}{% endfor %}{% endfor %}{% endfor %}{% endif %}"
    "{% for m in messages %}<|s|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}"
    "<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|e|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|s|>assistant\n{% if enable_thinking is defined %}<think>\n"
    "{% if not enable_thinking %}\n</think>\n\n{% endif %}{% endif %}{% endif %}"
)
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich 🦊"}}\n</tool_call>'
TWO_CALLS = f'Wait.\n{CALL}\n<tool_call>{{"name": "now", "arguments": {{}}}}</tool_call>'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tools"), chat_template=TEMPLATE)


@pytest.fixture
async def server(folder: Path) -> TextServer:
    return TextServer(folder, text_info(folder, max_model_len=2048))


async def message_of(server: TextServer, **fields: Any) -> tuple[dict[str, Any], str]:
    answer = answer_of(await server.chat(**fields))
    [choice] = answer["choices"]
    return choice["message"], choice["finish_reason"]


async def refusal_of(server: TextServer, **fields: Any) -> dict[str, Any]:
    return error_of(await server.chat(**fields))


async def test_a_whole_answer_with_calls(server: TextServer) -> None:
    server.say(TWO_CALLS)
    message, reason = await message_of(server, tools=[WEATHER, NOW])
    assert reason == "tool_calls"
    ids = [call.pop("id") for call in message["tool_calls"]]
    assert len(set(ids)) == 2
    assert all(call_id.startswith("call_") for call_id in ids)
    assert message == {
        "role": "assistant",
        "content": "Wait.",
        "refusal": None,
        "reasoning_content": None,
        "reasoning": None,
        "tool_calls": [
            {
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Zürich 🦊"}'},
            },
            {"type": "function", "function": {"name": "now", "arguments": "{}"}},
        ],
    }
    server.say(CALL)
    message, _ = await message_of(server, tools=[WEATHER])
    assert message["content"] is None


async def test_a_required_call_that_is_cut_off_is_no_content(server: TextServer) -> None:
    """Neither whole nor in a stream, wherever `max_tokens` cuts it."""
    call = '<tool_call>\n{"name": "now", "arguments": {"zone": "Zürich 🦊"}}\n</tool_call>'
    server.say(call)
    tools: Any = {"tools": [NOW], "tool_choice": "required"}
    for max_tokens in random.sample(range(1, len(server.encode(call))), 6):
        message, reason = await message_of(server, **tools, max_tokens=max_tokens)
        assert not message["content"] and reason == "length"
        events = events_of(await server.chat(**tools, max_tokens=max_tokens, stream=True))
        deltas = [event["choices"][0]["delta"] for event in events]
        assert not any(delta.get("content") for delta in deltas)
        written = [call["function"].get("arguments", "") for d in deltas for call in _calls_in(d)]
        whole = [call["function"]["arguments"] for call in message["tool_calls"] or ()]
        assert "".join(written) == "".join(whole)


def _calls_in(delta: dict[str, Any]) -> list[dict[str, Any]]:
    return delta.get("tool_calls") or []


async def test_the_clients_accumulated_stream_is_the_whole_answer(server: TextServer) -> None:
    """As the official client puts it together, at any number of tokens per event."""
    server.say("<think>\nHm.\n</think>\n" + TWO_CALLS, "It is warm.", CALL[:-30])
    fields: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [WEATHER, NOW],
        "n": 3,
        "logprobs": True,
    }
    async with server.listening() as url:
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x")
        whole = await client.chat.completions.create(**fields)
        for num_tokens in (1, 2, 5, 1000):
            server.engine.tokens_per_event = num_tokens
            async with client.chat.completions.stream(**fields) as stream:
                async for _ in stream:
                    pass
                streamed = await stream.get_final_completion()
            for a, b in zip(whole.choices, streamed.choices, strict=True):
                assert a.finish_reason == b.finish_reason
                assert (a.message.content or None) == (b.message.content or None)
                assert reasoning(a.message) == reasoning(b.message)
                assert functions(a.message) == functions(b.message)
                assert a.logprobs is not None and b.logprobs is not None
                assert a.logprobs.content == b.logprobs.content
        await client.close()
    reasons = [choice.finish_reason for choice in whole.choices]
    assert reasons == ["tool_calls", "stop", "tool_calls"]
    assert reasoning(whole.choices[0].message) == "Hm."


def reasoning(message: Any) -> str | None:
    text: str | None = getattr(message, "reasoning_content", None)
    assert text == getattr(message, "reasoning", None)
    return text


def functions(message: Any) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]


async def test_chunks_have_the_shape_that_clients_expect(server: TextServer) -> None:
    server.say(CALL)
    events = events_of(await server.chat(tools=[WEATHER], stream=True))
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[0] == {"role": "assistant", "content": None}
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    first, *rest = calls
    assert first.pop("id").startswith("call_")
    assert first["type"] == "function"
    assert first["index"] == 0
    assert first["function"]["name"] == "get_weather"
    assert len(rest) > 3
    for call in rest:
        assert call.keys() == {"index", "function"}
        assert call["function"].keys() == {"arguments"}
    assert "".join(c["function"]["arguments"] for c in calls) == '{"city": "Zürich 🦊"}'
    assert not any(delta.get("content") for delta in deltas)
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_stream_equals_whole_for_any_text(server: TextServer) -> None:
    rng = random.Random(random.getrandbits(64))
    scraps = [
        CALL,
        "<tool_call>",
        '{"name": "now", "arguments": {',
        "}",
        "<think>",
        "</think>",
        "x",
    ]
    for _ in range(20):
        server.say("".join(rng.choices(scraps, k=5)))
        server.engine.tokens_per_event = rng.randrange(1, 6)
        fields: dict[str, Any] = {"tools": [WEATHER, NOW], "max_tokens": rng.randrange(1, 200)}
        message, reason = await message_of(server, **fields)
        events = events_of(await server.chat(**fields, stream=True))
        deltas = [event["choices"][0]["delta"] for event in events]
        for name in ("content", "reasoning_content"):
            joined = "".join(delta.get(name) or "" for delta in deltas)
            assert joined == (message[name] or "")
        arguments: dict[int, str] = {}
        for delta in deltas:
            for call in delta.get("tool_calls", ()):
                so_far = arguments.get(call["index"], "")
                arguments[call["index"]] = so_far + call["function"]["arguments"]
        whole = [call["function"]["arguments"] for call in message["tool_calls"] or ()]
        assert list(arguments.values()) == whole
        assert events[-1]["choices"][0]["finish_reason"] == reason


async def test_the_template_gets_tools_and_the_conversation(server: TextServer) -> None:
    server.say("It is warm.")
    call = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
    ]
    message, reason = await message_of(server, messages=messages, tools=[WEATHER])
    assert (message["content"], message["tool_calls"], reason) == ("It is warm.", None, "stop")
    assert (
        server.last_prompt
        == (
            json.dumps(WEATHER["function"]["parameters"])  # type: ignore[index]
            + "<tool_call><|s|>user\nhi<|e|>\n"
            + '<|s|>assistant\n<tool_call>{"arguments": {}, "name": "now"}</tool_call><|e|>\n'
            + "<|s|>tool\nnoon<|e|>\n<|s|>assistant\n"
        )
        or '"name": "now", "arguments": {}' in server.last_prompt
    )
    count = await server.post("/tokenize", messages=messages, tools=[WEATHER])
    assert count.json()["tokens"] == server.last_request.prompt_token_ids


async def test_tool_choice_none_is_a_plain_chat(server: TextServer) -> None:
    server.say(CALL)
    message, reason = await message_of(server, tools=[WEATHER], tool_choice="none")
    assert (message["content"], message["tool_calls"], reason) == (CALL, None, "stop")
    assert "<tool_call>" not in server.last_prompt
    message, _ = await message_of(server, tools=[], tool_choice="auto", parallel_tool_calls=False)
    assert message["content"] == CALL


async def test_allowed_tools_are_the_only_ones(server: TextServer) -> None:
    server.say(CALL)
    named = {"type": "function", "function": {"name": "get_weather"}}
    message, reason = await message_of(
        server, tools=[NOW, WEATHER], tool_choice=allowed(named, mode="required")
    )
    assert (message["tool_calls"][0]["function"]["name"], reason) == ("get_weather", "tool_calls")
    structure = server.last_request.sampling.structure
    assert structure is not None
    assert "get_weather" in structure.text and '"now"' not in structure.text
    prompts = []
    for fields in (
        {"tools": [NOW, WEATHER], "tool_choice": allowed(named)},
        {"tools": [WEATHER], "tool_choice": "auto"},
    ):
        await message_of(server, **fields)
        assert server.last_request.sampling.structure is None
        prompts.append(server.last_prompt)
    assert prompts[0] == prompts[1]


async def test_one_call_at_a_time(server: TextServer) -> None:
    server.say(TWO_CALLS)
    fields: dict[str, Any] = {"tools": [WEATHER, NOW], "parallel_tool_calls": False}
    message, reason = await message_of(server, **fields)
    assert len(message["tool_calls"]) == 1
    assert reason == "tool_calls"
    events = events_of(await server.chat(**fields, stream=True))
    calls = [c for e in events for c in e["choices"][0]["delta"].get("tool_calls", ())]
    assert {call["index"] for call in calls} == {0}


async def test_a_call_cut_off_by_the_length(server: TextServer) -> None:
    server.say(CALL)
    num_tokens = len(server.encode(CALL[: CALL.index("rich")]))
    message, reason = await message_of(server, tools=[WEATHER], max_tokens=num_tokens)
    assert reason == "length"
    assert message["tool_calls"][0]["function"]["arguments"].startswith('{"city": "Z')


async def test_reasoning_is_split_off(server: TextServer) -> None:
    server.say("<think>\nHm.\n</think>\n\nYes.")
    message, _ = await message_of(server)
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Yes.")
    server.say("Hm.\n</think>\n\nYes.")
    message, _ = await message_of(server, reasoning_effort="high")
    assert (message["reasoning"], message["content"]) == ("Hm.", "Yes.")
    assert server.last_prompt.endswith("assistant\n<think>\n")
    server.say("Yes.")
    for fields in (
        {"reasoning_effort": "none"},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ):
        message, _ = await message_of(server, **fields)
        assert (message["reasoning"], message["content"]) == (None, "Yes.")
    server.say("Hm.")
    message, _ = await message_of(server, reasoning_effort="high")
    assert (message["reasoning"], message["content"]) == ("Hm.", None)
    server.say(" more.</think>Yes.")
    said = [{"role": "assistant", "content": "<think>Hm, "}]
    message, _ = await message_of(server, messages=said, continue_final_message=True)
    assert (message["reasoning"], message["content"]) == (" more.", "Yes.")


@pytest.mark.parametrize(
    ("said", "reasoning", "fields"),
    [
        ("<think>\nthe lazy dog\n</think>\n\nthe fox", "<think>\nthe lazy dog\n</think>", {}),
        ("the dog</think>the fox", "the dog</think>", {"reasoning_effort": "high"}),
        ("the fox", "", {}),
        ("the fox </think>", "", {}),
    ],
)
async def test_tokens_of_reasoning_are_counted(
    server: TextServer, said: str, reasoning: str, fields: dict[str, Any]
) -> None:
    starts = [start for start, _ in server.tokenizer.encode(said, add_special_tokens=False).offsets]
    expected = sum(start < len(reasoning) for start in starts)
    server.say(said)
    usage = (await server.chat(n=2, **fields)).json()["usage"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 2 * expected}
    options = {"include_usage": True}
    streamed = await server.chat(n=2, **fields, stream=True, stream_options=options)
    assert events_of(streamed)[-1]["usage"] == usage


async def test_the_operator_chooses_the_parsers(folder: Path) -> None:
    engine = {"tool_call_parser": "json", "reasoning_parser": "none"}
    server = TextServer(folder, text_info(folder), engine=engine)
    server.say('{"name": "now", "arguments": {}}')
    message, _ = await message_of(server, tools=[NOW])
    assert message["tool_calls"][0]["function"]["name"] == "now"
    server.say("<think>Hm.</think>Yes.")
    message, _ = await message_of(server, tools=[NOW])
    assert (message["reasoning"], message["content"]) == (None, "<think>Hm.</think>Yes.")


async def test_markers_that_are_special_tokens(tmp_path: Path) -> None:
    """They are left out of texts, but not of those in which they mark calls."""
    template = "{% if tools %}[TOOL_CALLS][THINK]{% endif %}{{ messages[0].content }}"
    folder = write_tokenizer(tmp_path, chat_template=template)
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.add_special_tokens(["[TOOL_CALLS]", "[ARGS]", "[OTHER]"])
    raw.save(str(folder / "tokenizer.json"))
    server = TextServer(folder, text_info(folder))
    server.say('[OTHER]Wait. [TOOL_CALLS]now[ARGS]{"a": 1}')
    message, reason = await message_of(server, tools=[NOW])
    assert (message["content"], reason) == ("Wait.", "tool_calls")
    assert message["tool_calls"][0]["function"] == {"name": "now", "arguments": '{"a": 1}'}
    message, _ = await message_of(server)
    assert message["content"] == 'Wait. now{"a": 1}'


async def test_a_template_without_tools_is_told_in_plain_text(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    folder = write_tokenizer(tmp_path, chat_template=template)
    server = TextServer(folder, text_info(folder, max_model_len=2048))
    server.say('{"name": "get_weather", "arguments": {"city": "Paris"}}')
    message, reason = await message_of(server, tools=[WEATHER])
    assert reason == "tool_calls"
    assert message["content"] is None
    prompt = server.last_prompt
    assert prompt.startswith("system: You can call functions.")
    assert '{"name": "get_weather", "description": "The weather of a city."' in prompt
    call = message["tool_calls"][0]
    messages = [
        {"role": "user", "content": "hi"},
        message,
        {"role": "tool", "tool_call_id": call["id"], "content": "18 °C"},
    ]
    await message_of(server, messages=messages, tools=[WEATHER])
    assert server.last_prompt.endswith(
        'assistant: {"name": "get_weather", "arguments": {"city": "Paris"}}\n'
        "user: Result of get_weather: 18 °C\n"
    )


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **function}}


def allowed(*tools: Any, mode: str = "auto") -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(tools)}}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tools": [tool(name="a b")]}, "tools[0].function.name", "pattern"),
        ({"tools": [tool(name="a" * 65)]}, "tools[0].function.name", "64"),
        ({"tools": [tool(), tool()]}, "tools[1].function.name", "two tools are named f"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type", "function"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "required"),
        ({"tools": [tool(parameters=5)]}, "tools[0].function.parameters", "object"),
        (
            {"tools": [tool(parameters={"type": "string"})]},
            "tools[0].function.parameters.type",
            "type object",
        ),
        ({"tools": [tool(name=f"f{i}") for i in range(129)]}, "tools", "at most 128"),
        ({"tools": [tool(parameters=nested(65))]}, "tools[0].function.parameters", "64 levels"),
        ({"tools": [tool(parameters={"a": "x" * MAX_TOOLS_BYTES})]}, "tools", "bytes of JSON"),
        ({"tools": {}}, "tools", "array"),
        ({"tools": [NOW], "tool_choice": "any"}, "tool_choice", "required"),
        ({"tools": [NOW], "tool_choice": {"type": "function"}}, "tool_choice", "must be"),
        (
            {"tools": [NOW], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice",
            "among the tools: now",
        ),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"tools": [NOW], "tool_choice": allowed()}, "tool_choice", "must be"),
        ({"tools": [NOW], "tool_choice": allowed(NOW, mode="none")}, "tool_choice", "must be"),
        ({"tools": [NOW], "tool_choice": allowed(NOW, allowed(NOW))}, "tool_choice", "must be"),
        ({"tools": [NOW], "tool_choice": allowed(NOW, WEATHER)}, "tool_choice", "among the tools"),
        ({"tools": [NOW], "parallel_tool_calls": "no"}, "parallel_tool_calls", "boolean"),
        ({"functions": [{"name": "f"}]}, "functions", "send tools instead"),
        ({"function_call": "auto"}, "function_call", "send tool_choice"),
        ({"reasoning_effort": "huge"}, "reasoning_effort", "must be"),
    ],
)
async def test_bad_requests_say_what_is_wrong(
    server: TextServer, fields: dict[str, Any], param: str, words: str
) -> None:
    error = await refusal_of(server, **fields)
    assert error["param"] == param
    assert words in error["message"]
    assert server.engine.requests == []


async def test_tools_that_cannot_fit_are_refused_before_they_are_rendered(
    server: TextServer,
) -> None:
    properties = {f"property_{i}": {"type": "string"} for i in range(5000)}
    big = tool(parameters={"type": "object", "properties": properties})
    error = await refusal_of(server, tools=[big])
    assert error["code"] == "context_length_exceeded"


async def test_the_engine_is_told_of_calls_that_must_come(server: TextServer) -> None:
    server.say(CALL)
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in ("required", named):
        _, reason = await message_of(server, tools=[WEATHER, NOW], tool_choice=choice)
        assert reason == "tool_calls"
        structure = server.last_request.sampling.structure
        assert structure is not None
        assert "get_weather" in structure.text
        assert structure.param == "tools"
    await message_of(server, tools=[WEATHER])
    assert server.last_request.sampling.structure is None


async def test_hostile_schemas_end_with_the_templates_limits(server: TextServer) -> None:
    """A template that goes over what the client sends is stopped; others are answered meanwhile."""
    properties = {f"p{i}": {} for i in range(300)}
    tools = [
        {
            "type": "function",
            "function": {"name": f"f{i}", "parameters": {"properties": properties}},
        }
        for i in range(8)
    ]
    messages = [{"role": "user", "content": "loop"}]
    error = await refusal_of(server, tools=tools, messages=messages)
    assert "chat template took more than" in error["message"]
    server.say("Yes.")
    assert (await message_of(server, tools=[NOW]))[0]["content"] == "Yes."


async def test_calls_in_the_history_nested_to_the_limit(server: TextServer) -> None:
    arguments: Any = {}
    for _ in range(700):
        arguments = {"a": arguments}
    for value in (arguments, json.dumps(arguments)):
        call = {"id": "c", "type": "function", "function": {"name": "now", "arguments": value}}
        messages = [{"role": "assistant", "tool_calls": [call]}]
        response = await server.chat(messages=messages, tools=[NOW])
        assert response.status_code in (200, 400), response.text


BOUND: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "type": "object",
    },
}
STRICT: dict[str, Any] = {
    **BOUND,
    "parameters": {**BOUND["parameters"], "additionalProperties": False},
    "strict": True,
}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tool_choice": "required"},
        {
            "parallel_tool_calls": False,
            "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        },
    ],
)
@pytest.mark.parametrize("function", [BOUND, STRICT])
async def test_what_langchain_sends(
    server: TextServer, fields: dict[str, Any], function: dict[str, Any]
) -> None:
    """The bodies of `bind_tools` and `with_structured_output(method="function_calling")`, letter by
    letter."""
    server.say(CALL)
    tools = [{"type": "function", "function": function}]
    asked = [{"content": "hi", "role": "user"}]
    message, _ = await message_of(server, messages=asked, tools=tools, stream=False, **fields)
    [call] = message["tool_calls"]
    said = {
        "content": None,
        "role": "assistant",
        "tool_calls": [
            {
                "type": "function",
                "id": call["id"],
                "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
            }
        ],
    }
    result = {"content": "18", "role": "tool", "tool_call_id": call["id"]}
    server.say("18 degrees.")
    history = [*asked, said, result]
    message, _ = await message_of(server, messages=history, tools=tools, stream=False)
    assert message["content"] == "18 degrees."
