# /// script
# dependencies = ["ollama", "pytest"]
# ///
"""Ollama's own client: https://github.com/ollama/ollama-python and the examples beside it.

Chats, prompts, lists of models and errors are in tests/e2e/test_ollama_client.py.
"""

import asyncio
import os

import ollama
import pytest
from pydantic import BaseModel, Field

URL = os.environ["SERVER_URL"]
MODEL = "smollm2-135m-instruct"
SHORT = {"temperature": 0, "num_predict": 100}


@pytest.fixture
def client():
    with ollama.Client(host=URL) as client:
        yield client


class FriendInfo(BaseModel):
    name: str = Field(max_length=20)
    age: int
    is_available: bool


class FriendList(BaseModel):
    friends: list[FriendInfo] = Field(max_length=2)


def test_structured_outputs(client):
    messages = [
        {
            "role": "user",
            "content": "I have two friends. The first is Ollama 22 years old busy saving the "
            "world, and the second is Alonso 23 years old and wants to hang out. Return a list of "
            "friends in JSON format",
        }
    ]
    arguments = {"model": MODEL, "messages": messages, "options": SHORT}
    response = client.chat(**arguments, format=FriendList.model_json_schema())
    friends = FriendList.model_validate_json(response.message.content)

    async def main():
        async with ollama.AsyncClient(host=URL) as client:
            return await client.chat(**arguments, format=FriendList.model_json_schema())

    assert FriendList.model_validate_json(asyncio.run(main()).message.content) == friends
    generated = client.generate(MODEL, "Two friends, as JSON.", format="json", options=SHORT)
    assert generated.response.startswith("{")


def add_two_numbers(a: int, b: int) -> int:
    """
    Add two numbers

    Args:
      a (int): The first number
      b (int): The second number

    Returns:
      int: The sum of the two numbers
    """
    return int(a) + int(b)


def test_tools(client):
    """Ollama has no way to demand a call, and a small model hardly makes any by itself; what it
    writes is one or the other."""
    messages = [{"role": "user", "content": "What is three plus one?"}]
    response = client.chat(MODEL, messages=messages, tools=[add_two_numbers], options=SHORT)
    assert response.message.content or response.message.tool_calls
    call = {"function": {"name": "add_two_numbers", "arguments": {"a": 3, "b": 1}}}
    messages += [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_name": "add_two_numbers"},
    ]
    final = client.chat(MODEL, messages=messages, options=SHORT)
    assert final.message.content


def test_embeddings(client):
    text = "The sky is blue because of rayleigh scattering"
    batch = client.embed(
        model="all-minilm-l6-v2", input=[text, "Grass is green because of chlorophyll"]
    )
    [first, second] = batch.embeddings
    [alone] = client.embed(model="all-minilm-l6-v2", input=text).embeddings
    assert alone == first != second
    assert len(first) == 384
