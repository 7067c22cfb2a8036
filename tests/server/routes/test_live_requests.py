"""`/v1/requests`: what is in flight is listed, and cancelled by its id."""

import asyncio
import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.contract.generate import GenerateRequest, TokenEvent
from server.http import turns
from tests.helpers.server.fake_server import until
from tests.helpers.server.text_server import MODEL, TextServer, events_of

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "hi"}]


async def begin(
    server: TextServer, path: str = CHAT, headers: dict[str, str] | None = None, **body: Any
) -> "asyncio.Task[httpx.Response]":
    """A request that the engine has, and goes on with when it is released."""
    before = len(server.engine.requests)
    body |= {"prompt": "the fox"} if path == COMPLETIONS else {"messages": HI}
    task = asyncio.create_task(server.client.post(path, json=body, headers=headers))
    await until(lambda: len(server.engine.requests) > before)
    return task


async def listed(client: httpx.AsyncClient, **given: Any) -> list[dict[str, Any]]:
    answer = (await client.get("/v1/requests", **given)).json()
    assert answer.keys() == {"object", "data"}
    assert answer["object"] == "list"
    data: list[dict[str, Any]] = answer["data"]
    return data


async def test_a_request_is_listed_from_its_start_to_its_end(server: TextServer) -> None:
    assert await listed(server.client) == []
    server.engine.hold()
    headers = {"X-Request-Id": "mine"}
    first = await begin(server, headers=headers, n=2, max_tokens=5)
    second = await begin(server, COMPLETIONS, stream=True)
    one, two = await listed(server.client)
    assert one == {
        "id": one["id"],
        "object": "request",
        "request_id": "mine",
        "kind": "text",
        "model": MODEL,
        "created": one["created"],
        "status": "queued",
        "n": 2,
        "num_finished": 0,
        "prompt_tokens": len(server.engine.requests[0].prompt_token_ids),
        "completion_tokens": 0,
        "progress": None,
        "operation": None,
        "stage": None,
    }
    assert one["id"].startswith("chatcmpl-")
    assert two["id"].startswith("cmpl-")
    server.engine.release()
    answers = await asyncio.gather(first, second)
    assert answers[0].json()["id"] == one["id"]
    assert answers[1].headers["x-request-id"] == two["request_id"]
    assert await listed(server.client) == []


async def test_tokens_are_counted_while_it_runs(server: TextServer) -> None:
    server.engine.delay_s = 0.002
    task = await begin(server, max_tokens=200)
    async with asyncio.timeout(10):
        while (await listed(server.client))[0]["completion_tokens"] < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    [found] = await listed(server.client)
    assert found["status"] == "running"
    assert 3 <= found["completion_tokens"] < 200
    assert (await server.client.delete(f"/v1/requests/{found['id']}")).status_code == 200
    await task


async def test_a_beam_search_runs_from_its_first_news_on(server: TextServer) -> None:
    server.engine.hold()
    task = await begin(server, max_tokens=5, use_beam_search=True, best_of=2)
    assert (await listed(server.client))[0]["status"] == "queued"
    (live,) = server.engine.live.values()
    live.stream.put(TokenEvent(request_id=live.request.request_id))
    async with asyncio.timeout(10):
        while (await listed(server.client))[0]["status"] == "queued":  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    server.engine.release()
    assert (await task).status_code == 200


@pytest.mark.parametrize("by", ["id", "request_id"])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("stream", [False, True])
async def test_cancelling_ends_it_in_the_engine_and_leaves_the_others(
    server: TextServer, by: str, path: str, stream: bool
) -> None:
    server.engine.delay_s = 0.002
    neighbour = await begin(server, max_tokens=20)
    task = await begin(server, path, n=2, max_tokens=200, stream=stream)
    if stream:
        await until(lambda: server.engine.requests[-1].request_id in server.engine.live)
    _, found = await listed(server.client)
    response = await server.client.delete(f"/v1/requests/{found[by]}")
    [cancelled] = response.json()["data"]
    assert (cancelled["id"], cancelled["status"]) == (found["id"], "cancelled")
    assert server.engine.aborted == [server.engine.requests[-1].request_id]
    answer = await task
    error = events_of(answer)[-1]["error"] if stream else answer.json()["error"]
    assert answer.status_code == (200 if stream else 499)
    assert (error["code"], error["message"]) == (
        "request_aborted",
        "the request was cancelled by its id",
    )
    assert (await neighbour).json()["usage"]["completion_tokens"] == 20
    assert server.state.admission.num_requests == 0
    assert (await server.client.delete(f"/v1/requests/{found[by]}")).status_code == 404


async def test_what_was_written_before_it_is_counted(server: TextServer) -> None:
    server.engine.delay_s = 0.001
    task = await begin(server, COMPLETIONS, max_tokens=200)
    await until(lambda: len(server.engine.live) == 1)
    await server.client.delete(f"/v1/requests/{(await listed(server.client))[0]['id']}")
    await task
    await server.complete(max_tokens=1)
    page = (await server.client.get("/metrics")).text
    ended = [line for line in page.splitlines() if "tandem_request_success_total{" in line]
    assert sum(float(line.rsplit(" ", 1)[1]) for line in ended) == 2, ended


async def test_several_that_came_with_one_id_are_cancelled_together(server: TextServer) -> None:
    server.engine.hold()
    headers = {"X-Request-Id": "batch/7"}
    tasks = [await begin(server, headers=headers) for _ in range(3)]
    other = await begin(server, max_tokens=1)
    found = await listed(server.client, params={"id": "batch/7"})
    assert len(found) == 3
    response = await server.client.delete("/v1/requests/batch/7")
    assert [r["id"] for r in response.json()["data"]] == [r["id"] for r in found]
    assert {answer.status_code for answer in await asyncio.gather(*tasks)} == {499}
    server.engine.release()
    assert (await other).status_code == 200


async def test_an_id_that_stands_for_nothing(server: TextServer) -> None:
    response = await server.client.delete("/v1/requests/chatcmpl-1")
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (404, "request_not_found")
    assert "GET /v1/requests" in error["message"]


async def test_a_request_is_listed_as_soon_as_the_engine_has_it(
    server: TextServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where others have a turn right after it was sent, as on a busy machine."""
    monkeypatch.setattr(turns, "TURN_S", -1.0)
    submit, listed_at_once = server.engine.submit, []

    def submit_and_look(request: GenerateRequest) -> Any:
        look = server.state.live_requests.of
        asyncio.get_running_loop().call_soon(lambda: listed_at_once.append(len(look(None))))
        return submit(request)

    monkeypatch.setattr(server.engine, "submit", submit_and_look)
    assert (await server.chat()).status_code == 200
    assert (await server.complete(prompt=["a", "b"])).status_code == 200
    assert listed_at_once == [1, 1, 1]


async def test_a_request_is_cancelled_before_all_its_prompts_are_sent(
    server: TextServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "TURN_S", -1.0)
    server.engine.hold()
    num_prompts = random.randint(20, 100)
    sending = asyncio.create_task(server.complete(prompt=["a"] * num_prompts))
    while not server.engine.requests:  # noqa: ASYNC110 (every turn counts)
        await asyncio.sleep(0)
    [(_, run)] = server.state.live_requests.of(None)
    await run.cancel()
    assert (await sending).status_code == 499
    assert len(server.engine.requests) < num_prompts
    assert not server.engine.live


@pytest.fixture
async def keyed(tokenizer_folder: Path) -> TextServer:
    return TextServer(tokenizer_folder, api_keys=["alice", "bob"])


async def test_a_key_sees_and_cancels_its_own_only(keyed: TextServer) -> None:
    alice, bob = ({"Authorization": f"Bearer {key}"} for key in ("alice", "bob"))
    keyed.engine.hold()
    task = await begin(keyed, headers=alice, max_tokens=1)
    assert (await keyed.client.get("/v1/requests")).status_code == 401
    assert await listed(keyed.client, headers=bob) == []
    [found] = await listed(keyed.client, headers=alice)
    path = f"/v1/requests/{found['id']}"
    assert (await keyed.client.delete(path, headers=bob)).status_code == 404
    assert (await keyed.client.delete(path, headers=alice)).status_code == 200
    assert (await task).status_code == 499
