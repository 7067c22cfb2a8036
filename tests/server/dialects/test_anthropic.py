"""Anthropic's routes over the scripted engine, asked by its own client and by hand."""

import json
import random
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest

from engine.contract.operations import GENERATE
from tests.helpers.server.fake_engine import Failure
from tests.helpers.server.text_server import MODEL, TextServer, text_info, write_tokenizer

ROUTE = "/v1/messages"
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}"
    "{% for m in messages %}<|s|>{{ m.role }}\n{{ m.content }}"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{% for c in m.tool_calls or [] %}"
    "<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|e|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|s|>assistant\n"
    "{% if enable_thinking is defined %}<think>\n"
    "{% if not enable_thinking %}\n</think>\n\n{% endif %}{% endif %}{% endif %}"
)
TOOLS: list[Any] = [
    {
        "name": "get_weather",
        "description": "Get the current weather in a given location",
        "input_schema": {
            "type": "object",
            "properties": {"location": {"type": "string"}},
            "required": ["location"],
        },
    }
]
SEARCH = {"type": "web_search_20250305", "name": "web_search"}
CALLS = (
    "Let me see."
    '<tool_call>{"name": "get_weather", "arguments": {"location": "Rome"}}</tool_call>'
    '<tool_call>{"name": "get_weather", "arguments": {"location": "Oslo"}}</tool_call>'
)
HELLO: list[Any] = [{"role": "user", "content": "Hello, Claude"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("anthropic"), chat_template=TEMPLATE)


@pytest.fixture
async def server(folder: Path) -> TextServer:
    server = TextServer(folder, text_info(folder, max_model_len=1024), api_keys=["secret"])
    server.client.headers["x-api-key"] = "secret"
    return server


@pytest.fixture
async def client(server: TextServer) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with (
        server.listening() as url,
        anthropic.AsyncAnthropic(base_url=url, api_key="secret", max_retries=0) as client,
    ):
        yield client


def error_of(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"type", "error"} and body["type"] == "error"
    assert body["error"].keys() == {"type", "message"}
    error: dict[str, Any] = body["error"]
    return error


async def test_a_message(server: TextServer, client: anthropic.AsyncAnthropic) -> None:
    server.say("the quick brown fox")
    server.engine.num_cached_tokens = 3
    message = await client.messages.create(
        model=MODEL, max_tokens=64, system="You are a fox.", messages=HELLO
    )
    [block] = message.content
    assert block.type == "text" and block.text == "the quick brown fox"
    assert (message.role, message.model, message.stop_reason) == ("assistant", MODEL, "end_turn")
    assert message.id.startswith("msg_") and message.stop_sequence is None
    usage = message.usage
    assert usage.cache_read_input_tokens == 3
    assert usage.input_tokens + 3 == len(server.last_request.prompt_token_ids)
    assert server.last_prompt == (
        "<|s|>system\nYou are a fox.<|e|>\n<|s|>user\nHello, Claude<|e|>\n<|s|>assistant\n"
    )


async def test_events_of_a_stream(server: TextServer, client: anthropic.AsyncAnthropic) -> None:
    server.say("the fox")
    stream = await client.messages.create(model=MODEL, max_tokens=64, messages=HELLO, stream=True)
    events = [event async for event in stream]
    kinds = [event.type for event in events]
    assert [kind for i, kind in enumerate(kinds) if kind != kinds[i - 1]] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start, delta = events[0], events[-2]
    assert start.type == "message_start" and delta.type == "message_delta"
    assert start.message.content == [] and start.message.stop_reason is None
    assert start.message.usage.input_tokens == len(server.last_request.prompt_token_ids)
    assert delta.delta.stop_reason == "end_turn" and delta.usage.output_tokens == 3


async def test_the_clients_stream_helper(
    server: TextServer, client: anthropic.AsyncAnthropic
) -> None:
    server.say("wizards make toxic brew")
    async with client.messages.stream(max_tokens=64, messages=HELLO, model=MODEL) as stream:
        text = "".join([text async for text in stream.text_stream])
        final = await stream.get_final_message()
    assert text == "wizards make toxic brew"
    whole = await client.messages.create(max_tokens=64, messages=HELLO, model=MODEL)
    assert final.content[0].text == whole.content[0].text == text  # type: ignore[union-attr]
    assert (final.usage.input_tokens, final.usage.output_tokens) == (
        whole.usage.input_tokens,
        whole.usage.output_tokens,
    )


async def test_ends(server: TextServer, client: anthropic.AsyncAnthropic) -> None:
    message = await client.messages.create(model=MODEL, max_tokens=3, messages=HELLO)
    assert message.stop_reason == "max_tokens" and message.usage.output_tokens == 3
    server.say("the quick brown fox")
    arguments: Any = {"model": MODEL, "max_tokens": 64, "messages": HELLO}
    message = await client.messages.create(**arguments, stop_sequences=["zzz", " brown"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", " brown")
    assert message.content[0].text == "the quick"  # type: ignore[union-attr]
    async with client.messages.stream(**arguments, stop_sequences=[" brown"]) as stream:
        final = await stream.get_final_message()
    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", " brown")


async def test_tools(server: TextServer, client: anthropic.AsyncAnthropic) -> None:
    server.say(CALLS)
    question: Any = {"role": "user", "content": "Is it warmer in Rome or in Oslo?"}
    arguments: Any = {"model": MODEL, "max_tokens": 256, "tools": TOOLS}
    message = await client.messages.create(**arguments, messages=[question])
    assert message.stop_reason == "tool_use"
    assert [block.type for block in message.content] == ["text", "tool_use", "tool_use"]
    uses = [block for block in message.content if block.type == "tool_use"]
    assert [use.input for use in uses] == [{"location": "Rome"}, {"location": "Oslo"}]
    assert '"location"' in server.last_prompt
    for tokens_per_event in (1, 4, 1000):
        server.engine.tokens_per_event = tokens_per_event
        async with client.messages.stream(**arguments, messages=[question]) as stream:
            final = await stream.get_final_message()
        own = {"id", "caller"}
        contents = [[b.model_dump(exclude=own) for b in m.content] for m in (final, message)]
        for block in (*contents[0], *contents[1]):
            block.pop("parsed_output", None)
        assert contents[0] == contents[1]
        assert final.stop_reason == "tool_use"
    server.say("In Rome.")
    results = [{"type": "tool_result", "tool_use_id": use.id, "content": "warm"} for use in uses]
    answer: Any = {"role": "assistant", "content": message.content}
    await client.messages.create(
        **arguments, messages=[question, answer, {"role": "user", "content": results}]
    )
    prompt = server.last_prompt
    assert prompt.count("<|s|>tool\nwarm<|e|>") == 2 and prompt.count("<tool_call>") == 3
    assert "<|s|>user\n<|e|>" not in prompt


async def test_the_clients_tool_runner_sends_whole_conversations(
    server: TextServer, client: anthropic.AsyncAnthropic
) -> None:
    """It asks for a thread that the server keeps, unless it is told that there are none."""
    server.say(CALLS)

    @anthropic.beta_async_tool
    async def get_weather(location: str) -> str:
        """Get the current weather in a given location"""
        return f"sunny in {location}"

    arguments: Any = {"model": MODEL, "max_tokens": 256, "messages": HELLO}
    runner = client.beta.messages.tool_runner(**arguments, tools=[get_weather], max_iterations=2)
    assert [message.stop_reason async for message in runner] == ["tool_use", "tool_use"]
    prompt = server.last_prompt
    assert "Hello, Claude" in prompt and "<tool_call>" in prompt and "sunny in Oslo" in prompt
    refused = await server.post(ROUTE, **arguments, thread={"type": "create"})
    assert refused.status_code == 400
    assert refused.json()["error"]["details"] == {
        "error_code": "thread_unsupported_request",
        "unsupported": ["thread"],
    }


async def test_thinking(server: TextServer, client: anthropic.AsyncAnthropic) -> None:
    server.say("Stars.\n</think>\n\nAn otter.")
    arguments: Any = {
        "model": MODEL,
        "max_tokens": 256,
        "messages": HELLO,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    message = await client.messages.create(**arguments)
    thought, text = message.content
    assert thought.type == "thinking" and thought.thinking == "Stars."
    assert text.type == "text" and text.text == "An otter."
    async with client.messages.stream(**arguments) as stream:
        final = await stream.get_final_message()
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert final.content[0].thinking == "Stars."  # type: ignore[union-attr]
    server.say("An otter.")
    history: Any = [*HELLO, {"role": "assistant", "content": message.content}, *HELLO]
    await client.messages.create(
        model=MODEL, max_tokens=9, messages=history, thinking={"type": "disabled"}
    )
    assert "An otter.<think>Stars.</think>" in server.last_prompt
    assert server.last_prompt.endswith("</think>\n\n")


async def test_turns_of_one_role_are_one_and_the_last_is_continued(
    server: TextServer, client: anthropic.AsyncAnthropic
) -> None:
    server.say("B)")
    await client.messages.create(
        model=MODEL,
        max_tokens=9,
        messages=[
            {"role": "user", "content": "Hi."},
            {"role": "user", "content": [{"type": "text", "text": "The name for Sun?"}]},
            {"role": "assistant", "content": "The best answer is ("},
        ],
    )
    assert server.last_prompt == (
        "<|s|>user\nHi.\n\nThe name for Sun?<|e|>\n<|s|>assistant\nThe best answer is ("
    )


async def test_models_are_listed_to_anthropics_clients(
    server: TextServer, client: anthropic.AsyncAnthropic
) -> None:
    page = await client.models.list()
    assert [model.id for model in page.data] == [MODEL] and page.has_more is False
    one = await client.models.retrieve(MODEL)
    assert one == page.data[0]
    assert (one.type, one.display_name, one.max_input_tokens) == ("model", MODEL, 1024)
    assert one.created_at.timestamp() == server.engine.infos(GENERATE)[0].created
    plain = (await server.client.get("/v1/models")).json()
    assert plain["object"] == "list" and plain["data"][0]["object"] == "model"
    with pytest.raises(anthropic.NotFoundError):
        await client.models.retrieve("claude-9")


@pytest.mark.parametrize("name", ["output_format", "output_config"])
async def test_the_form_of_the_text(server: TextServer, name: str) -> None:
    """The form is taken also under its name in the beta."""
    schema = {"type": "object", "properties": {"location": {"type": "string"}}}
    form = {"type": "json_schema", "schema": schema}
    fields: dict[str, Any] = {name: form if name == "output_format" else {"format": form}}
    server.say('{"location": "Rome"}')
    answer = await server.post(ROUTE, max_tokens=20, messages=HELLO, **fields)
    assert answer.json()["content"] == [{"type": "text", "text": '{"location": "Rome"}'}]
    structure = server.last_request.sampling.structure
    assert structure is not None and json.dumps(schema) in structure.text
    other = {"output_format": form, "output_config": {"format": {"type": "json_object"}}}
    refused = await server.post(ROUTE, max_tokens=20, messages=HELLO, **other)
    assert "output_format" in error_of(refused)["message"]


async def test_tokens_are_counted(server: TextServer, client: anthropic.AsyncAnthropic) -> None:
    arguments: Any = {"model": MODEL, "system": "You are a fox.", "messages": HELLO}
    for more in ({}, {"tools": TOOLS}):
        counted = await client.messages.count_tokens(**arguments, **more)
        await client.messages.create(**arguments, **more, max_tokens=1)
        assert counted.input_tokens == len(server.last_request.prompt_token_ids)


async def test_errors_are_the_clients_types(
    server: TextServer, client: anthropic.AsyncAnthropic
) -> None:
    with pytest.raises(anthropic.NotFoundError, match="claude-9"):
        await client.messages.create(model="claude-9", max_tokens=1, messages=HELLO)
    with pytest.raises(anthropic.BadRequestError, match=r"limit: \d+ \+ 1024 > 1024, decrease"):
        await client.messages.create(model=MODEL, max_tokens=1024, messages=HELLO)
    words: Any = [{"role": "user", "content": "fox " * random.randint(1100, 5000)}]
    counted = await client.messages.count_tokens(model=MODEL, messages=words)
    with pytest.raises(anthropic.BadRequestError) as caught:
        await client.messages.create(model=MODEL, max_tokens=1, messages=words)
    found = re.search(r"prompt is too long: (\d+) tokens > 1024 maximum", str(caught.value))
    assert found is not None and 1024 < int(found[1]) <= counted.input_tokens
    with pytest.raises(anthropic.AuthenticationError):
        await client.with_options(api_key="wrong").messages.create(
            model=MODEL, max_tokens=1, messages=HELLO
        )
    server.engine.failure = Failure(after=2)
    stream = await client.messages.create(model=MODEL, max_tokens=9, messages=HELLO, stream=True)
    with pytest.raises(anthropic.APIStatusError, match="blocks"):
        _ = [event async for event in stream]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [3]}, "messages[0]"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "[0].source"),
        ({"messages": [{"role": "assistant", "content": [{"type": "image"}]}]}, "of the user"),
        ({"messages": [{"role": "user", "content": [{"type": "odd"}]}]}, "block"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "block"),
        ({"system": 3}, "system"),
        ({"system": [{"type": "image"}]}, "images can only be"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"temperature": -1}, "temperature"),
        ({"tools": [{"name": "x y", "input_schema": {}}]}, "tools[0].name"),
        ({"tools": [SEARCH, {"name": "x y", "input_schema": {}}]}, "tools[1].name"),
        ({"tools": [SEARCH], "tool_choice": {"type": "tool", "name": "web_search"}}, "tool_choice"),
        ({"tools": [SEARCH], "tool_choice": {"type": "any"}}, "there are no tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
    ],
    ids=str,
)
async def test_bad_fields_are_named(server: TextServer, fields: Any, named: str) -> None:
    body = {"max_tokens": 4, "messages": HELLO} | fields
    error = error_of(await server.post(ROUTE, **body))
    assert error["type"] == "invalid_request_error" and named in error["message"], error
    assert not server.engine.requests


async def test_failures_of_middleware_have_the_shape_too(server: TextServer) -> None:
    body = {"max_tokens": 4, "messages": HELLO}
    refused = await server.client.post(ROUTE, json=body, headers={"x-api-key": "no"})
    assert error_of(refused, 401)["type"] == "authentication_error"
    assert error_of(await server.client.get(f"{ROUTE}/nothing"), 404)["type"] == "not_found_error"
    assert error_of(await server.client.post(ROUTE, content="x"), 415)
    bearer = {"x-api-key": "", "Authorization": "Bearer secret"}
    assert (await server.client.post(ROUTE, json=body, headers=bearer)).status_code == 200


async def test_unknown_fields_are_reported_and_known_ones_are_not(server: TextServer) -> None:
    body = {"max_tokens": 1, "messages": HELLO, "metadata": {"user_id": "me"}, "odd": 1}
    answer = await server.post(ROUTE, **body, cache_control={"type": "ephemeral"}, top_k=3)
    assert answer.headers["x-ignored-fields"] == "odd"
    assert server.last_request.sampling.top_k == 3


async def test_a_stream_holds_nothing_but_named_events(server: TextServer) -> None:
    body = {"max_tokens": 4, "messages": HELLO, "stream": True}
    text = (await server.post(ROUTE, **body)).text
    assert "[DONE]" not in text
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        assert json.loads(data.removeprefix("data: "))["type"] == name.removeprefix("event: ")


def marked(text: str, **control: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "cache_control": {"type": "ephemeral", **control}}


async def test_cache_control_pins_what_comes_before_it(
    server: TextServer, client: anthropic.AsyncAnthropic
) -> None:
    result = {"type": "tool_result", "tool_use_id": "1", "content": "it rains"}
    cases: list[tuple[list[Any], dict[str, Any], dict[int, str]]] = [
        ([{"role": "user", "content": [marked("the fox"), marked("the dog")]}], {}, {300: "dog"}),
        (
            [{"role": "user", "content": [marked("the dog"), {"type": "text", "text": "jumps"}]}],
            {"system": [marked("the quick fox", ttl="1h"), {"type": "text", "text": "the"}]},
            {3600: "fox", 300: "dog"},
        ),
        (
            [
                *HELLO,
                {
                    "role": "assistant",
                    "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}],
                },
                {"role": "user", "content": [result | {"cache_control": {"type": "ephemeral"}}]},
            ],
            {},
            {300: "rains"},
        ),
        (HELLO, {"cache_control": {"type": "ephemeral"}}, {300: "assistant\n"}),
    ]
    for messages, fields, ends in cases:
        cached = server.engine.num_cached_tokens = random.randrange(8)
        message = await client.messages.create(
            model=MODEL, max_tokens=4, messages=messages, **fields
        )
        request, usage = server.last_request, message.usage
        found = {pin.seconds: pin.num_tokens for pin in request.pins}
        assert found.keys() == ends.keys()
        for seconds, num_tokens in found.items():
            before = server.tokenizer.decode(request.prompt_token_ids[:num_tokens])
            assert before.endswith(ends[seconds]), (before, ends)
        hour = max(0, found.get(3600, 0) - cached)
        assert usage.cache_read_input_tokens == cached
        assert usage.cache_creation_input_tokens == max(0, max(found.values()) - cached)
        assert usage.cache_creation is not None
        assert usage.cache_creation.ephemeral_1h_input_tokens == hour
        whole = usage.input_tokens + cached + usage.cache_creation_input_tokens
        assert whole == len(request.prompt_token_ids)


@pytest.mark.parametrize(
    ("blocks", "param"),
    [([marked("x")] * 5, "cache_control"), ([marked("x", ttl="2h")], "cache_control.ttl")],
)
async def test_false_cache_control_is_refused(
    server: TextServer, blocks: list[Any], param: str
) -> None:
    body = {"max_tokens": 4, "messages": [{"role": "user", "content": blocks}]}
    answer = await server.client.post(ROUTE, json=body)
    assert param in error_of(answer)["message"]
