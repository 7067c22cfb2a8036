# /// script
# dependencies = ["litellm", "pytest"]
# ///
"""LiteLLM: https://docs.litellm.ai/docs/providers/openai_compatible"""

import asyncio
import json
import os

import litellm
import pytest
from pydantic import BaseModel

BASE_URL = os.environ["OPENAI_BASE_URL"]
SERVER_URL = os.environ["SERVER_URL"]
MODEL = "openai/smollm2-135m-instruct"
HELLO = [{"role": "user", "content": "Hey, how's it going?"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_current_weather",
            "description": "Get the current weather in a given location",
            "parameters": {
                "type": "object",
                "properties": {
                    "location": {"type": "string"},
                    "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                },
                "required": ["location"],
            },
        },
    }
]


@pytest.fixture
def where():
    return {"api_base": BASE_URL, "api_key": "unused", "max_tokens": 64, "temperature": 0}


def test_completion(where):
    response = litellm.completion(model=MODEL, messages=HELLO, **where)
    whole = response.choices[0].message.content
    assert whole
    assert response.usage.completion_tokens > 0
    stream = litellm.completion(model=MODEL, messages=HELLO, stream=True, **where)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole

    async def ask():
        return await litellm.acompletion(model=MODEL, messages=HELLO, **where)

    assert asyncio.run(ask()).choices[0].message.content == whole


def test_function_calling(where):
    messages = [{"role": "user", "content": "What's the weather like in Paris?"}]
    response = litellm.completion(
        model=MODEL, messages=messages, tools=TOOLS, tool_choice="required", **where
    )
    message = response.choices[0].message
    call = message.tool_calls[0]
    assert call.function.name == "get_current_weather"
    assert json.loads(call.function.arguments)["location"]
    messages += [
        message,
        {
            "tool_call_id": call.id,
            "role": "tool",
            "name": call.function.name,
            "content": '{"temperature": 22}',
        },
    ]
    second = litellm.completion(model=MODEL, messages=messages, tools=TOOLS, **where)
    assert second.choices[0].message.content or second.choices[0].message.tool_calls


class CalendarEvent(BaseModel):
    name: str
    date: str
    participants: list[str]


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_structured_output(where, provider):
    response = litellm.completion(
        model=MODEL.replace("openai", provider),
        messages=[
            {"role": "system", "content": "Extract the event information."},
            {"role": "user", "content": "Alice and Bob are going to a science fair on Friday."},
        ],
        response_format=CalendarEvent,
        **(where | {"max_tokens": 256}),
    )
    assert CalendarEvent.model_validate_json(response.choices[0].message.content)


def test_a_context_that_is_too_long_is_known_as_such(where):
    long = [{"role": "user", "content": "word " * 20_000}]
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(model=MODEL, messages=long, **where)


def test_embedding_and_images():
    where = {"api_base": BASE_URL, "api_key": "unused"}
    answer = litellm.embedding(model="openai/all-minilm-l6-v2", input=["good morning"], **where)
    assert len(answer.data[0]["embedding"]) == 384
    image = litellm.image_generation(
        model="openai/tandem-shapes", prompt="a red circle", size="64x64", **where
    )
    assert image.data[0].b64_json


def test_responses():
    response = litellm.responses(
        model=MODEL,
        input="Tell me a three sentence bedtime story.",
        max_output_tokens=48,
        temperature=0,
        api_base=BASE_URL,
        api_key="unused",
    )
    assert response.output[0].content[0].text


@pytest.mark.parametrize("provider", ["ollama", "ollama_chat"])
def test_ollamas_api(provider):
    """Asynchronously, too, where the transport declares bytes for a body of JSON."""
    arguments = {
        "model": f"{provider}/smollm2-135m-instruct",
        "messages": HELLO,
        "api_base": SERVER_URL,
        "max_tokens": 24,
        "temperature": 0,
    }
    whole = litellm.completion(**arguments).choices[0].message.content
    assert whole

    async def ask():
        response = await litellm.acompletion(**arguments)
        stream = await litellm.acompletion(**arguments, stream=True)
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return response.choices[0].message.content, "".join(parts)

    assert asyncio.run(ask()) == (whole, whole)


def test_ollamas_embeddings():
    async def embed():
        model = "ollama/all-minilm-l6-v2"
        return await litellm.aembedding(model=model, input=["good morning"], api_base=SERVER_URL)

    assert len(asyncio.run(embed()).data[0]["embedding"]) == 384


def test_messages():
    """Anthropic's API, by its own provider."""
    response = litellm.completion(
        model="anthropic/smollm2-135m-instruct",
        messages=HELLO,
        api_base=SERVER_URL,
        api_key="unused",
        max_tokens=24,
        temperature=0,
    )
    assert response.choices[0].message.content
