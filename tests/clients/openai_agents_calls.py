# /// script
# dependencies = ["openai-agents", "pytest"]
# ///
"""OpenAI's Agents SDK: https://openai.github.io/openai-agents-python/"""

import asyncio
import os

import openai
import pytest
from agents import (
    Agent,
    MaxTurnsExceeded,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from pydantic import BaseModel, Field

BASE_URL = os.environ["OPENAI_BASE_URL"]
MODEL = "smollm2-135m-instruct"
SETTINGS = ModelSettings(temperature=0.0, max_tokens=128)


@pytest.fixture(params=[OpenAIChatCompletionsModel, OpenAIResponsesModel])
def model(request):
    set_tracing_disabled(True)
    client = openai.AsyncOpenAI(base_url=BASE_URL, api_key="unused", max_retries=0)
    return request.param(model=MODEL, openai_client=client)


def test_hello_world(model):
    agent = Agent(
        name="Assistant",
        instructions="You are a helpful assistant",
        model=model,
        model_settings=SETTINGS,
    )
    result = Runner.run_sync(agent, "Write a haiku about recursion in programming.")
    assert result.final_output
    followed = [*result.to_input_list(), {"role": "user", "content": "And one about loops."}]
    assert Runner.run_sync(agent, followed).final_output


class CalendarEvent(BaseModel):
    name: str = Field(max_length=40)
    date: str = Field(max_length=20)
    participants: list[str] = Field(max_length=3)


def test_output_types(model):
    agent = Agent(
        name="Calendar extractor",
        instructions="Extract calendar events from text",
        output_type=CalendarEvent,
        model=model,
        model_settings=ModelSettings(temperature=0.0, max_tokens=300),
    )
    result = Runner.run_sync(agent, "Alice and Bob go to a science fair on Friday.")
    assert isinstance(result.final_output, CalendarEvent)


def test_function_tools(model):
    seen = []

    @function_tool
    def get_weather(city: str) -> str:
        """Get the weather of a city."""
        seen.append(city)
        return f"The weather in {city} is sunny."

    agent = Agent(
        name="Hello world",
        instructions="You are a helpful agent.",
        tools=[get_weather],
        model=model,
        model_settings=ModelSettings(temperature=0.0, max_tokens=128, tool_choice="required"),
    )
    try:
        result = Runner.run_sync(agent, "What's the weather in Tokyo?", max_turns=3)
        assert result.final_output is not None
    except MaxTurnsExceeded:
        pass  # a small model may call for ever
    assert seen


def test_streaming(model):
    agent = Agent(name="Guide", instructions="Be brief.", model=model, model_settings=SETTINGS)

    async def stream():
        result = Runner.run_streamed(agent, input="What is the capital of France?")
        text = ""
        async for event in result.stream_events():
            if event.type == "raw_response_event" and event.data.type.endswith("text.delta"):
                text += event.data.delta
        return text, result.final_output

    text, final = asyncio.run(stream())
    assert text == final != ""
