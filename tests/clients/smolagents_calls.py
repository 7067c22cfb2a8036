# /// script
# dependencies = ["smolagents[openai]", "pytest"]
# ///
"""smolagents: https://huggingface.co/docs/smolagents/"""

import os

import pytest
from smolagents import CodeAgent, OpenAIServerModel, ToolCallingAgent, tool

BASE_URL = os.environ["OPENAI_BASE_URL"]
MODEL = "smollm2-135m-instruct"


@pytest.fixture
def model():
    return OpenAIServerModel(
        model_id=MODEL, api_base=BASE_URL, api_key="unused", max_tokens=64, temperature=0.0
    )


@tool
def get_weather(location: str) -> str:
    """Get the weather.

    Args:
        location: the location
    """
    return f"It is sunny in {location}."


def test_generate_and_stream(model):
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hello!"}]}]
    whole = model.generate(messages).content
    assert whole
    assert "".join(part.content or "" for part in model.generate_stream(messages)) == whole


def test_a_tool_is_called(model):
    messages = [{"role": "user", "content": [{"type": "text", "text": "Weather in Paris?"}]}]
    message = model.generate(messages, tools_to_call_from=[get_weather])
    call = message.tool_calls[0]
    assert call.function.name == "get_weather"


def test_agents_run(model):
    """A small model ends neither task by itself; each step is parsed."""
    for kind in (ToolCallingAgent, CodeAgent):
        agent = kind(tools=[get_weather], model=model, max_steps=2)
        agent.run("What is the weather in Paris?")
        assert len(agent.memory.steps) >= 2


def test_structured_outputs(model):
    agent = CodeAgent(
        tools=[get_weather], model=model, max_steps=1, use_structured_outputs_internally=True
    )
    agent.run("What is the weather in Paris?")
    first = agent.memory.steps[1]
    assert first.model_output_message.content.startswith("{")
