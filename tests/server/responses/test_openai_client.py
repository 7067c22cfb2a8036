"""The calls of OpenAI's documentation, unchanged but for the model's name."""

import asyncio
import json

import openai
import pytest
from openai import AsyncOpenAI

from tests.helpers.server.fake_engine import Failure
from tests.helpers.server.fake_server import until
from tests.helpers.server.text_server import MODEL, TextServer


async def test_a_text_is_answered(server: TextServer, client: AsyncOpenAI) -> None:
    server.say("the quick brown fox")
    response = await client.responses.create(
        model=MODEL,
        instructions="You are a coding assistant that talks like a pirate.",
        input="How do I check if a Python object is an instance of a class?",
    )
    assert response.output_text == "the quick brown fox"
    assert (response.status, response.object, response.model) == ("completed", "response", MODEL)
    assert response.completed_at is not None and response.error is None
    [message] = response.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    num_input = len(server.last_request.prompt_token_ids)
    assert response.usage is not None
    assert response.usage.input_tokens == num_input
    assert response.usage.total_tokens == num_input + response.usage.output_tokens
    prompt = server.last_prompt
    assert prompt == (
        "<|s|>system\nYou are a coding assistant that talks like a pirate.<|e|>\n"
        "<|s|>user\nHow do I check if a Python object is an instance of a class?<|e|>\n"
        "<|s|>assistant\n"
    )


async def test_events_of_a_stream(server: TextServer, client: AsyncOpenAI) -> None:
    server.say("the fox")
    stream = await client.responses.create(model=MODEL, input="Say it.", stream=True)
    events = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert [kind for i, kind in enumerate(kinds) if kind != kinds[i - 1]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "the fox"
    created, completed = events[0], events[-1]
    assert created.type == "response.created" and created.response.status == "in_progress"
    assert created.response.output == [] and created.response.usage is None
    assert completed.type == "response.completed"
    assert completed.response.output_text == "the fox"
    assert completed.response.usage is not None
    stored = await client.responses.retrieve(completed.response.id)
    assert stored == completed.response


async def test_the_clients_stream_helper(server: TextServer, client: AsyncOpenAI) -> None:
    server.say("wizards make toxic brew")
    async with client.responses.stream(model=MODEL, input="Go on.") as stream:
        texts = [e.delta async for e in stream if e.type == "response.output_text.delta"]
        final = await stream.get_final_response()
    assert "".join(texts) == final.output_text == "wizards make toxic brew"


async def test_a_conversation_goes_on(server: TextServer, client: AsyncOpenAI) -> None:
    server.say("dog")
    first = await client.responses.create(
        model=MODEL, instructions="quick", input="the fox jumps over the lazy"
    )
    second = await client.responses.create(
        model=MODEL,
        previous_response_id=first.id,
        input=[{"role": "user", "content": "Are you sure?"}],
    )
    assert second.previous_response_id == first.id
    third = await client.responses.create(model=MODEL, previous_response_id=second.id, input="ok")
    prompt = server.last_prompt
    turns = ["user\nthe fox jumps over the lazy", "assistant\ndog", "user\nAre you sure?"]
    turns += ["assistant\ndog", "user\nok"]
    assert prompt == "".join(f"<|s|>{t}<|e|>\n" for t in turns) + "<|s|>assistant\n"
    listed = [item async for item in client.responses.input_items.list(third.id, order="asc")]
    texts = [item.content[0].text for item in listed]  # type: ignore[union-attr]
    assert texts == ["the fox jumps over the lazy", "dog", "Are you sure?", "dog", "ok"]
    assert len({item.id for item in listed}) == 5
    newest = [i async for i in client.responses.input_items.list(third.id, limit=2)]
    assert [item.id for item in newest] == [item.id for item in reversed(listed)]


async def test_responses_are_read_and_deleted(server: TextServer, client: AsyncOpenAI) -> None:
    response = await client.responses.create(
        model=MODEL, input="x", metadata={"topic": "demo"}, max_output_tokens=3
    )
    assert response.metadata == {"topic": "demo"}
    assert await client.responses.retrieve(response.id) == response
    assert await client.responses.delete(response.id) is None
    with pytest.raises(openai.NotFoundError) as caught:
        await client.responses.retrieve(response.id)
    assert caught.value.code == "response_not_found"
    with pytest.raises(openai.NotFoundError):
        await client.responses.create(model=MODEL, input="y", previous_response_id=response.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.delete(response.id)


async def test_what_is_not_stored_is_not_found(client: AsyncOpenAI) -> None:
    response = await client.responses.create(
        model=MODEL, input="x", store=False, max_output_tokens=3
    )
    assert response.store is False
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(response.id)


async def test_a_response_that_reaches_its_limit_is_incomplete(
    client: AsyncOpenAI,
) -> None:
    response = await client.responses.create(model=MODEL, input="x", max_output_tokens=3)
    assert response.status == "incomplete" and response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete"  # type: ignore[union-attr]
    assert response.usage is not None and response.usage.output_tokens == 3
    stream = await client.responses.create(model=MODEL, input="x", max_output_tokens=3, stream=True)
    events = [event async for event in stream]
    assert events[-1].type == "response.incomplete"


async def test_background_responses_are_polled(server: TextServer, client: AsyncOpenAI) -> None:
    server.say("done")
    server.engine.hold()
    response = await client.responses.create(
        model=MODEL, input="Write a very long novel.", background=True
    )
    assert (response.status, response.background) == ("queued", True)
    assert (await client.responses.retrieve(response.id)).status == "queued"
    server.engine.release()
    async with asyncio.timeout(10):
        while response.status in {"queued", "in_progress"}:
            await asyncio.sleep(0.002)
            response = await client.responses.retrieve(response.id)
    assert (response.status, response.output_text) == ("completed", "done")
    assert response.usage is not None
    # Cancelling what has ended changes nothing.
    assert (await client.responses.cancel(response.id)).status == "completed"


async def test_background_responses_are_cancelled(server: TextServer, client: AsyncOpenAI) -> None:
    server.engine.hold()
    response = await client.responses.create(model=MODEL, input="A novel.", background=True)
    assert server.state.admission.num_in_flight() == 1
    cancelled = await client.responses.cancel(response.id)
    assert cancelled.status == "cancelled"
    assert (await client.responses.retrieve(response.id)).status == "cancelled"
    assert (await client.responses.cancel(response.id)).status == "cancelled"
    assert len(server.engine.aborted) == 1 and not server.engine.live


async def test_a_background_response_is_deleted(server: TextServer, client: AsyncOpenAI) -> None:
    server.engine.hold()
    response = await client.responses.create(model=MODEL, input="A novel.", background=True)
    await client.responses.delete(response.id)
    assert not server.engine.live
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(response.id)


async def test_a_background_response_fails(server: TextServer, client: AsyncOpenAI) -> None:
    server.engine.hold()
    response = await client.responses.create(model=MODEL, input="A novel.", background=True)
    server.engine.die()
    await until(lambda: not server.state.background_responses._live)
    failed = await client.responses.retrieve(response.id)
    assert failed.status == "failed" and failed.error is not None
    assert failed.error.code == "server_error" and "ended" in failed.error.message


async def test_only_background_responses_are_cancelled(client: AsyncOpenAI) -> None:
    response = await client.responses.create(model=MODEL, input="x", max_output_tokens=2)
    with pytest.raises(openai.BadRequestError, match="background"):
        await client.responses.cancel(response.id)


async def test_log_probabilities(server: TextServer, client: AsyncOpenAI) -> None:
    server.say("the fox")
    arguments = {"model": MODEL, "input": "x", "include": ["message.output_text.logprobs"]}
    response = await client.responses.create(**arguments, top_logprobs=2)
    part = response.output[0].content[0]  # type: ignore[union-attr]
    tokens = "".join(entry.token for entry in part.logprobs)
    assert tokens.startswith("the fox")
    assert all(len(entry.top_logprobs) == 2 for entry in part.logprobs)
    stream = await client.responses.create(**arguments, top_logprobs=2, stream=True)
    events = [event async for event in stream]
    streamed = [p for e in events if e.type == "response.output_text.delta" for p in e.logprobs]
    assert [p.token for p in streamed] == [p.token for p in part.logprobs]


async def test_history_with_calls_reaches_the_template(
    server: TextServer, client: AsyncOpenAI
) -> None:
    await client.responses.create(
        model=MODEL,
        max_output_tokens=1,
        input=[
            {"role": "developer", "content": "be short"},
            {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {
                "type": "function_call",
                "call_id": "call_1",
                "name": "get_weather",
                "arguments": json.dumps({"city": "Rome"}),
            },
            {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
        ],
    )
    prompt = server.last_prompt
    assert "assistant\nRome<|e|>" in prompt and "<|s|>tool\nsunny<|e|>" in prompt


async def test_a_failure_within_a_stream(server: TextServer, client: AsyncOpenAI) -> None:
    server.say("the quick brown fox")
    server.engine.failure = Failure(after=2)
    stream = await client.responses.create(model=MODEL, input="x", stream=True)
    events = [event async for event in stream]
    assert events[-1].type == "response.failed"
    assert events[-1].response.error is not None
    assert "blocks" in events[-1].response.error.message
    kinds = [event.type for event in events]
    assert kinds.count("response.output_item.done") == 1
    assert [event.sequence_number for event in events] == list(range(len(events)))
