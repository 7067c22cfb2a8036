# /// script
# dependencies = ["anthropic", "pytest"]
# ///
"""Calls Anthropic's own client (https://platform.claude.com/docs/en/api/sdks/python).

Messages, their streams and counts of tokens are in tests/e2e/test_anthropic_client.py.
"""

import asyncio
import os

import anthropic
import pytest
from pydantic import BaseModel

URL = os.environ["SERVER_URL"]
MODEL = "smollm2-135m-instruct"
GREEDY = {"extra_body": {"temperature": 0}}
WEATHER = {
    "name": "get_weather",
    "description": "Get the current weather in a given location",
    "input_schema": {
        "type": "object",
        "properties": {
            "location": {"type": "string", "description": "The city, e.g. San Francisco"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        },
        "required": ["location"],
    },
}


@pytest.fixture
def client():
    with anthropic.Anthropic(base_url=URL, api_key="unused", max_retries=0) as client:
        yield client


def test_tool_use(client):
    """The call is demanded, since a small model hardly makes any by itself."""
    question = {"role": "user", "content": "What's the weather like in San Francisco?"}
    arguments = {"model": MODEL, "max_tokens": 100, "tools": [WEATHER], **GREEDY}
    response = client.messages.create(**arguments, messages=[question], tool_choice={"type": "any"})
    assert response.stop_reason == "tool_use"
    call = next(block for block in response.content if block.type == "tool_use")
    assert call.name == "get_weather"
    assert isinstance(call.input["location"], str)
    with client.messages.stream(
        **arguments, messages=[question], tool_choice={"type": "any"}
    ) as stream:
        streamed = stream.get_final_message()
    assert [block.input for block in streamed.content] == [b.input for b in response.content]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "15 degrees"}
    final = client.messages.create(
        **arguments,
        tool_choice={"type": "none"},
        messages=[
            question,
            {"role": "assistant", "content": response.content},
            {"role": "user", "content": [result]},
        ],
    )
    assert final.content[0].text


def test_the_tool_runner(client):
    asked = []

    @anthropic.beta_tool
    def get_weather(location: str) -> str:
        """Get the weather for a given location.

        Args:
            location: The city, e.g. San Francisco
        """
        asked.append(location)
        return f"The weather in {location} is sunny."

    runner = client.beta.messages.tool_runner(
        model=MODEL,
        max_tokens=100,
        max_iterations=2,
        tools=[get_weather],
        tool_choice={"type": "any"},
        messages=[{"role": "user", "content": "What is the weather in SF?"}],
        **GREEDY,
    )
    assert [message.stop_reason for message in runner] == ["tool_use", "tool_use"]
    assert asked


class ContactInfo(BaseModel):
    name: str
    email: str
    plan_interest: str
    demo_requested: bool


def test_structured_outputs(client):
    response = client.messages.parse(
        model=MODEL,
        max_tokens=300,
        messages=[
            {
                "role": "user",
                "content": "Extract the key information from this email: John Smith "
                "(john@example.com) is interested in our Enterprise plan and wants to schedule a "
                "demo for next Tuesday at 2pm.",
            }
        ],
        output_format=ContactInfo,
        **GREEDY,
    )
    assert isinstance(response.parsed_output, ContactInfo)


def test_async_events_and_cached_prompts():
    async def main():
        async with anthropic.AsyncAnthropic(base_url=URL, api_key="unused") as client:
            stream = await client.messages.create(
                model=MODEL,
                max_tokens=24,
                system=[
                    {
                        "type": "text",
                        "text": "You are an AI assistant. Be brief. " * 12,
                        "cache_control": {"type": "ephemeral"},
                    }
                ],
                messages=[{"role": "user", "content": "Hello, Claude"}],
                stream=True,
            )
            return [event async for event in stream]

    asyncio.run(main())
    events = asyncio.run(main())
    assert (events[0].type, events[-1].type) == ("message_start", "message_stop")
    assert events[0].message.usage.cache_read_input_tokens > 0


def test_models(client):
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


def test_errors(client):
    hello = {"max_tokens": 8, "messages": [{"role": "user", "content": "Hello, Claude"}]}
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="claude-9", **hello)
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(model=MODEL, **hello | {"max_tokens": 10_000})
