# /// script
# dependencies = ["openai", "pytest"]
# ///
"""OpenAI's own client: https://github.com/openai/openai-python and the guides of its API.

Chats, completions, streams, conversations and errors are in tests/e2e/test_openai_client.py.
"""

import asyncio
import base64
import io
import json

import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

MODEL = "smollm2-135m-instruct"
PIRATE = "You are a coding assistant that talks like a pirate."
QUESTION = "How do I check if a Python object is an instance of a class?"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get current temperature for a given location.",
    "parameters": {
        "type": "object",
        "properties": {"location": {"type": "string"}},
        "required": ["location"],
        "additionalProperties": False,
    },
    "strict": True,
}


@pytest.fixture
def client():
    """A client that takes address and key from the environment."""
    with OpenAI(max_retries=0) as client:
        yield client


def test_its_first_page(client):
    arguments = {"model": MODEL, "instructions": PIRATE, "input": QUESTION, "temperature": 0}
    response = client.responses.create(**arguments, max_output_tokens=32)
    assert response.output_text
    stream = client.responses.create(**arguments, max_output_tokens=32, stream=True)
    texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert "".join(texts) == response.output_text
    completion = client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "developer", "content": "Talk like a pirate."},
            {"role": "user", "content": QUESTION},
        ],
        max_completion_tokens=32,
    )
    assert completion.choices[0].message.content

    async def main():
        async with AsyncOpenAI() as client:
            return await client.responses.create(**arguments, max_output_tokens=32)

    assert asyncio.run(main()).output_text == response.output_text


class CalendarEvent(BaseModel):
    name: str = Field(max_length=40)
    date: str = Field(max_length=20)
    participants: list[str] = Field(max_length=3)


def test_structured_outputs(client):
    messages = [
        {"role": "system", "content": "Extract the event information."},
        {"role": "user", "content": "Alice and Bob are going to a science fair on Friday."},
    ]
    arguments = {"model": MODEL, "temperature": 0}
    completion = client.chat.completions.parse(
        **arguments, messages=messages, response_format=CalendarEvent, max_tokens=300
    )
    assert isinstance(completion.choices[0].message.parsed, CalendarEvent)
    response = client.responses.parse(
        **arguments, input=messages, text_format=CalendarEvent, max_output_tokens=300
    )
    assert response.output_parsed == completion.choices[0].message.parsed
    response = client.responses.create(
        **arguments,
        input=[{"role": "user", "content": "How much ?"}],
        text={"format": {"type": "json_object"}},
        max_output_tokens=100,
    )
    assert response.output_text.startswith("{")


def test_function_calling(client):
    """The guide's loop; the call is demanded, since a small model hardly makes any by itself."""
    input_list = [{"role": "user", "content": "What is the weather like in Paris today?"}]
    arguments = {
        "model": MODEL,
        "tools": [WEATHER],
        "max_output_tokens": 60,
        "temperature": 0,
        "parallel_tool_calls": False,
    }
    response = client.responses.create(**arguments, input=input_list, tool_choice="required")
    input_list += response.output
    calls = [item for item in response.output if item.type == "function_call"]
    for call in calls:
        assert (call.name, json.loads(call.arguments).keys()) == ("get_weather", {"location"})
        input_list.append(
            {"type": "function_call_output", "call_id": call.call_id, "output": "14 °C"}
        )
    assert calls
    final = client.responses.create(**arguments, input=input_list, tool_choice="none")
    assert final.output_text


def test_embeddings(client):
    arguments = {"model": "all-minilm-l6-v2", "input": "Your text string goes here"}
    [one] = client.embeddings.create(**arguments).data
    [floats] = client.embeddings.create(**arguments, encoding_format="float").data
    assert len(one.embedding) == 384
    assert one.embedding == pytest.approx(floats.embedding)


def test_images(client):
    arguments = {"model": "tandem-shapes", "size": "64x64"}
    drawn = client.images.generate(**arguments, prompt="a red circle")
    picture = base64.b64decode(drawn.data[0].b64_json)
    edited = client.images.edit(
        **arguments, image=("circle.png", io.BytesIO(picture), "image/png"), prompt="a blue circle"
    )
    assert base64.b64decode(edited.data[0].b64_json).startswith(b"\x89PNG")
    assert edited.data[0].b64_json != drawn.data[0].b64_json


def test_raw_responses(client):
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=[{"role": "user", "content": "Say this is a test"}], max_tokens=8
    )
    assert raw.headers["x-request-id"]
    assert raw.parse().choices[0].message.content
