# /// script
# dependencies = ["pydantic-ai-slim[openai]", "pytest"]
# ///
"""Pydantic AI: https://ai.pydantic.dev/models/openai/"""

import asyncio
import itertools
import os

import pytest
from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, ToolOutput, UsageLimitExceeded
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import UsageLimits

BASE_URL = os.environ["OPENAI_BASE_URL"]
MODEL = "smollm2-135m-instruct"
SETTINGS = ModelSettings(temperature=0.0, max_tokens=200)


class CityLocation(BaseModel):
    city: str = Field(max_length=40)
    country: str = Field(max_length=40)


@pytest.fixture
def provider():
    return OpenAIProvider(base_url=BASE_URL, api_key="unused")


@pytest.fixture(params=[OpenAIChatModel, OpenAIResponsesModel])
def model(request, provider):
    return request.param(MODEL, provider=provider, settings=SETTINGS)


def test_hello_world(model):
    agent = Agent(model, instructions="Be concise, reply with one sentence.")
    result = agent.run_sync('Where does "hello world" come from?')
    assert result.output
    assert result.usage.output_tokens > 0 if not callable(result.usage) else result.usage()


@pytest.mark.parametrize("form", [ToolOutput, NativeOutput])
def test_output_types(model, form):
    agent = Agent(model, output_type=form(CityLocation))
    result = agent.run_sync("Where were the olympics held in 2012?")
    assert isinstance(result.output, CityLocation)


def test_streamed_text(model):
    agent = Agent(model)

    async def stream():
        async with agent.run_stream("Where does hello world come from?") as response:
            return [text async for text in response.stream_text()]

    texts = asyncio.run(stream())
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    assert texts[-1]


def test_a_tool(provider):
    model = OpenAIChatModel(MODEL, provider=provider, settings=SETTINGS)
    agent = Agent(model, output_type=CityLocation)
    seen = []

    @agent.tool_plain
    def population(city: str) -> int:
        """How many people live in a city."""
        seen.append(city)
        return 1000

    question = "How many people live in Paris, and where is it?"
    try:
        result = agent.run_sync(question, usage_limits=UsageLimits(request_limit=2))
        assert isinstance(result.output, CityLocation)
    except UsageLimitExceeded:
        assert seen  # a small model may call for ever
