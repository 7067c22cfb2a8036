"""Ollama's own client, with the calls of its documentation, against the default model."""

import asyncio

import httpx
import ollama
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="module")
def host(start_shared_server):
    """The default model under the name that the documentation uses."""
    model = '{"ref": "smollm2-135m-instruct", "name": "gemma4"}'
    # Its calls set no limit, and a small model may not find an end.
    return start_shared_server("--model", model, "--max-model-len", "96").url


@pytest.fixture
def client(host):
    with ollama.Client(host=host) as client:
        yield client


def test_its_documentation(client, host):
    messages = [{"role": "user", "content": "Why is the sky blue?"}]

    response = client.chat(model="gemma4", messages=messages)
    assert response["message"]["content"]
    assert response.message.content == response["message"]["content"]

    stream = client.chat(model="gemma4", messages=messages, stream=True)
    chunks = list(stream)
    assert "".join(chunk["message"]["content"] for chunk in chunks)
    assert len(chunks) > 2 < chunks[-1].eval_count
    assert chunks[-1].eval_duration > 0

    assert client.generate(model="gemma4", prompt="Why is the sky blue?").response
    assert [model.model for model in client.list().models] == ["gemma4"]
    assert "<|im_start|>" in client.show("gemma4").template
    assert client.ps().models[0].model == "gemma4"

    async def chat():
        message = {"role": "user", "content": "Why is the sky blue?"}
        text = ""
        async with ollama.AsyncClient(host=host) as client:
            async for part in await client.chat(model="gemma4", messages=[message], stream=True):
                text += part["message"]["content"]
        return text

    assert asyncio.run(chat())

    model = "does-not-yet-exist"
    with pytest.raises(ollama.ResponseError) as e:
        client.chat(model)
    assert e.value.status_code == 404


def test_an_answer_is_that_of_our_own_route(client, host):
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    options = {"temperature": 0, "num_predict": 24}
    answer = client.chat(model="gemma4", messages=messages, options=options)
    body = {"messages": messages, "temperature": 0, "max_tokens": 24}
    own = httpx.post(f"{host}/v1/chat/completions", json=body, timeout=60).json()
    assert answer.message.content == own["choices"][0]["message"]["content"]
    assert "Paris" in answer.message.content
