"""`/v1/responses` where the official client does not go: refusals, bounds, owners, clients that
leave."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.helpers.server.fake_server import error_of, until
from tests.helpers.server.text_server import MODEL, TextServer

ROUTE = "/v1/responses"


async def respond(server: TextServer, **body: Any) -> Any:
    body.setdefault("input", "the fox")
    return await server.post(ROUTE, **body)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [3]}, "input[0]"),
        ({"input": [{"type": "message", "role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": 1}]}, "input[0].content"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0]"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0]",
        ),
        ({"input": [{"role": "user", "content": [{"type": "odd"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"type": "computer_call"}]}, "input[0]"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"conversation": {"name": "conv_1"}}, "conversation"),
        ({"conversation": "conv_1", "previous_response_id": "resp_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tools": 3}, "tools"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"background": True, "stream": True}, "stream"),
        ({"background": True, "store": False}, "store"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"metadata": {"x": 1}}, "metadata.x"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"include": "everything"}, "include"),
        ({"previous_response_id": "resp_none"}, "previous_response_id"),
    ],
    ids=str,
)
async def test_bad_fields_are_named(server: TextServer, fields: Any, param: str) -> None:
    answer = await respond(server, **fields)
    assert answer.status_code in (400, 404), answer.text
    error = answer.json()["error"]
    assert error["param"].startswith(param), error
    assert not server.engine.requests


async def test_a_conversation_that_does_not_fit_names_the_input(server: TextServer) -> None:
    for body in ({"input": "word " * 300}, {"max_output_tokens": 255}):
        answer = await respond(server, **body)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", "input")
        assert "messages" not in error["message"]
    assert "max_output_tokens can be at most" in error["message"]


async def test_unknown_fields_are_reported_and_known_ones_are_not(server: TextServer) -> None:
    answer = await respond(
        server, max_output_tokens=1, user="me", service_tier="auto", odd=1, top_k=3
    )
    assert answer.headers["x-ignored-fields"] == "odd"
    assert server.last_request.sampling.top_k == 3


async def test_sampling_is_what_was_asked_for(server: TextServer) -> None:
    answer = await respond(server, temperature=0.5, top_p=0.25, max_output_tokens=2)
    sampling = server.last_request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.5, 0.25, 2)
    assert (answer.json()["temperature"], answer.json()["top_p"]) == (0.5, 0.25)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stream_says_what_the_whole_says(server: TextServer, stream: bool) -> None:
    whole = (await respond(server, max_output_tokens=40)).json()
    streamed = (await respond(server, max_output_tokens=40, stream=True)).text
    last = json.loads(streamed.strip().split("\n\n")[-1].partition("data: ")[2])
    for name in ("output", "usage", "status"):
        mine, other = whole[name], last["response"][name]
        if name == "output":
            mine[0].pop("id"), other[0].pop("id")
        assert mine == other
    assert "[DONE]" not in streamed


async def test_an_empty_answer_is_an_empty_message(server: TextServer) -> None:
    server.say("")
    answer = (await respond(server)).json()
    assert answer["output"][0]["content"][0]["text"] == ""
    assert answer["status"] == "completed"


async def test_a_full_queue_is_a_429(tokenizer_folder: Path) -> None:
    server = TextServer(tokenizer_folder, max_queued_requests=0, engine={"max_num_seqs": 1})
    server.engine.hold()
    first = (await respond(server, background=True)).json()
    assert first["status"] == "queued"
    refused = await respond(server)
    assert refused.status_code == 429 and "retry-after" in refused.headers
    await server.client.post(f"{ROUTE}/{first['id']}/cancel")
    server.engine.release()
    assert (await respond(server, max_output_tokens=1)).status_code == 200


async def test_a_client_that_leaves_does_not_end_background_work(server: TextServer) -> None:
    server.engine.hold()
    async with server.listening() as url:
        async with httpx.AsyncClient() as client:
            answer = await client.post(url + ROUTE, json={"input": "x", "background": True})
        server.engine.release()
        await until(lambda: len(server.state.responses) == 1)
    stored = await server.client.get(f"{ROUTE}/{answer.json()['id']}")
    assert stored.json()["status"] == "incomplete"  # babbles to the context's end


@pytest.fixture
async def keyed(tokenizer_folder: Path) -> TextServer:
    return TextServer(tokenizer_folder, api_keys=["alice", "bob"])


async def test_responses_are_their_owners_alone(keyed: TextServer) -> None:
    alice, bob = ({"Authorization": f"Bearer {key}"} for key in ("alice", "bob"))
    body = {"input": "x", "max_output_tokens": 1}
    made = await keyed.client.post(ROUTE, json=body, headers=alice)
    path = f"{ROUTE}/{made.json()['id']}"
    keyed.engine.hold()
    job = await keyed.client.post(ROUTE, json={**body, "background": True}, headers=alice)
    live = f"{ROUTE}/{job.json()['id']}"
    continuing = {**body, "previous_response_id": made.json()["id"]}
    for headers, status in ((bob, 404), ({}, 401)):
        for request in (
            keyed.client.get(path, headers=headers),
            keyed.client.get(live, headers=headers),
            keyed.client.get(f"{path}/input_items", headers=headers),
            keyed.client.post(f"{live}/cancel", headers=headers),
            keyed.client.delete(path, headers=headers),
            keyed.client.delete(live, headers=headers),
            keyed.client.post(ROUTE, json=continuing, headers=headers),
        ):
            assert (await request).status_code == status
    # The same key in the other header is the same owner.
    assert (await keyed.client.get(live, headers={"X-Api-Key": "alice"})).status_code == 200
    assert (await keyed.client.get(path, headers=alice)).status_code == 200
    await keyed.client.post(f"{live}/cancel", headers=alice)


async def test_a_server_that_keeps_none(tokenizer_folder: Path) -> None:
    server = TextServer(tokenizer_folder, response_store_bytes=0)
    answer = await respond(server, max_output_tokens=1)
    assert answer.json()["store"] is False
    for field in ({"store": True}, {"background": True}, {"previous_response_id": "resp_1"}):
        error = error_of(await respond(server, **field))
        assert error["param"] == next(iter(field))


async def test_what_is_being_written_has_no_items_yet(server: TextServer) -> None:
    server.engine.hold()
    job = (await respond(server, background=True)).json()
    items = await server.client.get(f"{ROUTE}/{job['id']}/input_items")
    assert items.status_code == 400
    assert (await server.client.get(f"{ROUTE}/{job['id']}?stream=true")).status_code == 400
    await server.client.post(f"{ROUTE}/{job['id']}/cancel")


async def test_pages_of_input_items(server: TextServer) -> None:
    items = [{"role": "user", "content": str(i)} for i in range(5)]
    made = (await respond(server, input=items, max_output_tokens=1)).json()
    path = f"{ROUTE}/{made['id']}/input_items"
    first = (await server.client.get(path, params={"limit": 2, "order": "asc"})).json()
    assert [item["content"][0]["text"] for item in first["data"]] == ["0", "1"]
    assert first["has_more"] and first["first_id"] == first["data"][0]["id"]
    rest = await server.client.get(path, params={"order": "asc", "after": first["last_id"]})
    assert [item["content"][0]["text"] for item in rest.json()["data"]] == ["2", "3", "4"]
    assert rest.json()["has_more"] is False
    for bad in ({"limit": 0}, {"limit": 101}, {"order": "up"}, {"after": "nothing"}):
        error = error_of(await server.client.get(path, params=bad))
        assert error["param"] == next(iter(bad))


async def test_many_background_responses_end_with_the_server(server: TextServer) -> None:
    server.engine.hold()
    for _ in range(5):
        await respond(server, background=True)
    state = server.state
    assert state.admission.num_in_flight() == 5
    await state.background_responses.aclose()
    assert state.admission.num_in_flight() == 0 and not server.engine.live


async def test_the_model_may_be_named(server: TextServer) -> None:
    assert (await respond(server, model=MODEL, max_output_tokens=1)).status_code == 200
    unknown = await respond(server, model="gpt-9")
    assert unknown.status_code == 404
