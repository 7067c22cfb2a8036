"""The routes by which models sleep and wake, over a scripted engine."""

import asyncio
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.contract.status import Phase
from engine.errors import ModelNotReady
from server.routes import sleeping
from tests.helpers.server.fake_server import answer_of, error_of, until
from tests.helpers.server.text_server import MODEL, TextServer, text_info

Start = Callable[..., TextServer]


@pytest.fixture
def start(tokenizer_folder: Path) -> Start:
    def start(**settings: Any) -> TextServer:
        server = TextServer(tokenizer_folder, **{"enable_runtime_loading": True, **settings})
        server.engine.make_info = lambda spec: text_info(tokenizer_folder, spec.name)
        server.engine.serve(text_info(tokenizer_folder, "other"))
        return server

    return start


@pytest.fixture
async def server(start: Start) -> TextServer:
    return start()


async def values(server: TextServer) -> dict[str, str]:
    cards = answer_of(await server.client.get("/models"))["data"]
    return {card["id"]: card["status"]["value"] for card in cards if card["status"]["phase"]}


async def is_sleeping(server: TextServer, **query: str) -> bool:
    answer = answer_of(await server.client.get("/is_sleeping", params=query))
    return bool(answer["is_sleeping"])


async def test_models_sleep_and_wake(server: TextServer) -> None:
    assert not await is_sleeping(server)
    assert (await server.client.post("/sleep?level=1&model=other")).status_code == 200
    assert await values(server) == {MODEL: "loaded", "other": "sleeping"}
    assert (await is_sleeping(server), await is_sleeping(server, model="other")) == (False, True)
    assert (await server.client.post("/sleep?level=2")).status_code == 200
    assert await is_sleeping(server)
    ids = {card["id"] for card in answer_of(await server.client.get("/v1/models"))["data"]}
    assert ids == {MODEL, "other"}, "requests for both would be answered"
    assert (await server.client.get("/ready")).status_code == 200
    assert (await server.client.get("/ready/other")).status_code == 200
    response = await server.client.post("/wake_up?tags=weights&tags=kv_cache")
    assert response.status_code == 200
    assert await values(server) == {MODEL: "loaded", "other": "loaded"}


async def test_the_names_of_llama_swap(server: TextServer) -> None:
    async def running() -> dict[str, str]:
        found = answer_of(await server.client.get("/running"))["running"]
        return {one["model"]: one["state"] for one in found}

    assert await running() == {MODEL: "ready", "other": "ready"}
    server.engine.set_status("other", Phase.LOADING)
    assert await running() == {MODEL: "ready", "other": "starting"}
    server.engine.revive()
    assert (await server.client.post("/api/models/unload/other")).text == "OK"
    assert await running() == {MODEL: "ready"}
    assert (await server.client.post("/api/models/unload")).text == "OK"
    assert await running() == {}


async def test_a_load_wakes_a_sleeping_model(server: TextServer) -> None:
    await server.client.post("/sleep?model=other")
    answer = answer_of(await server.post("/models/load", model="other"))
    assert (answer["status"]["value"], server.engine.specs) == ("loaded", {})


async def test_pinned_models_stay_awake(server: TextServer) -> None:
    answer = answer_of(await server.post("/models/pin", model="other", pinned=True))
    assert answer["status"]["pinned"] is True
    response = await server.client.post("/sleep?model=other")
    assert response.status_code == 409, response.text
    await server.client.post("/sleep")
    assert await values(server) == {MODEL: "sleeping", "other": "loaded"}
    await server.post("/models/pin", model="other", pinned=False)
    await server.client.post("/sleep")
    assert await is_sleeping(server)


@pytest.mark.parametrize(
    "path",
    [
        *("/sleep?model=x", "/wake_up?model=x", "/api/models/unload/x", "/models/pin"),
        *("/reset_prefix_cache?model=x", "/start_profile?model=x", "/stop_profile?model=x"),
    ],
)
async def test_models_that_are_not_there(server: TextServer, path: str) -> None:
    body = {"model": "x", "pinned": True} if path == "/models/pin" else None
    response = await server.client.post(path, json=body)
    assert response.status_code == 404 and "'x' is not served" in response.text


@pytest.mark.parametrize(
    "path",
    [
        "/sleep",
        "/wake_up",
        "/api/models/unload",
        "/models/pin",
        "/reset_prefix_cache",
        "/flush_cache",
    ],
)
async def test_who_may_change_what_sleeps(start: Start, path: str) -> None:
    body = {"model": "other", "pinned": True}
    closed = start(enable_runtime_loading=False)
    response = await closed.client.post(path, json=body)
    assert response.status_code == 403 and "--enable-runtime-loading" in response.text
    guarded = start(api_keys=["one"], admin_keys=["two"])
    for key, status in (("one", 403), ("two", 200)):
        headers = {"Authorization": f"Bearer {key}"}
        response = await guarded.client.post(path, json=body, headers=headers)
        assert response.status_code == status, response.text
    headers = {"Sec-Fetch-Site": "cross-site", "Authorization": "Bearer two"}
    response = await guarded.client.post(path, json=body, headers=headers)
    assert response.status_code == 403


async def test_a_model_that_cannot_be_woken_says_why(server: TextServer) -> None:
    await server.client.post("/sleep?model=other")
    error = ModelNotReady("model 'other' sleeps and could not be woken: its disk is gone")
    error.retry_after_s = 10
    server.engine.load_error = error
    response = await server.client.post("/wake_up?model=other")
    assert "its disk is gone" in error_of(response, 503)["message"]
    assert response.headers["Retry-After"] == "10"


async def test_the_first_request_wakes_a_model_that_has_not_served_yet(server: TextServer) -> None:
    del server.engine.served["other"]
    server.engine.set_status("other", Phase.SLEEPING)
    server.engine.may_change.clear()
    asking = [
        asyncio.create_task(server.post(path, model="other", **body))
        for path, body in {
            "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
            "/v1/completions": {"prompt": "a"},
            "/v1/responses": {"input": "a"},
            "/v1/messages": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 5},
            "/api/chat": {"messages": [{"role": "user", "content": "a"}]},
            "/api/generate": {"prompt": "a"},
            "/completion": {"prompt": "a"},
            "/tokenize": {"prompt": "a"},
            "/apply-template": {"messages": [{"role": "user", "content": "a"}]},
        }.items()
    ]
    image = await server.post("/v1/images/generations", model="other", prompt="a")
    assert image.status_code == 400, "what it cannot do wakes nobody"
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in asking)
    server.engine.may_change.set()
    for response in await asyncio.gather(*asking):
        assert response.status_code == 200, response.text


async def test_requests_say_how_long_a_model_stays_awake(server: TextServer) -> None:
    async def kept(path: str, **body: Any) -> float | None:
        server.engine.kept_alive.clear()
        response = await server.post(path, model=MODEL, **body)
        assert response.status_code == 200, response.text
        return server.engine.kept_alive.get(MODEL)

    for path in ("/v1/completions", "/api/generate"):
        assert await kept(path, prompt="a", ttl=90) == 90
        assert await kept(path, prompt="a") is None
    for keep_alive, seconds in [("10m", 600), ("1h30m", 5400), (-1, -1), ("-5m", -1), (0, 0)]:
        assert await kept("/api/generate", prompt="a", keep_alive=keep_alive) == seconds
        assert await kept("/api/chat", keep_alive=keep_alive) == seconds
    for wrong in ("soon", "10 m", "", "1e99m"):
        answer = await server.post("/api/generate", model=MODEL, prompt="a", keep_alive=wrong)
        assert answer.status_code == 400 and "keep_alive" in answer.json()["error"]


async def test_only_admins_change_how_long_if_there_are_any(start: Start) -> None:
    server = start(api_keys=["one"], admin_keys=["two"])
    for key, kept in (("one", {}), ("two", {MODEL: 5.0})):
        headers = {"Authorization": f"Bearer {key}"}
        body = {"model": MODEL, "prompt": "a", "ttl": 5}
        answer_of(await server.client.post("/v1/completions", json=body, headers=headers))
        assert server.engine.kept_alive == kept


async def test_ollama_preloads_unloads_and_lists(server: TextServer) -> None:
    async def running() -> list[str]:
        models = answer_of(await server.client.get("/api/ps"))["models"]
        return [one["name"] for one in models]

    await server.client.post("/sleep?model=other")
    assert await running() == [MODEL]
    answer = answer_of(await server.post("/api/generate", model="other"))
    assert answer["done_reason"] == "load"
    assert await running() == [MODEL, "other"]
    answer = answer_of(await server.post("/api/chat", model="other", keep_alive=0))
    assert (answer["done_reason"], server.engine.kept_alive) == ("unload", {"other": 0})


async def test_the_events_of_llama_server(
    server: TextServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sleeping, "_POLL_S", 0.01)
    found: list[dict[str, Any]] = []

    async def follow(client: httpx.AsyncClient) -> None:
        async with client.stream("GET", "/models/sse") as response:
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    found.append(json.loads(line.removeprefix("data: ")))

    def of_other() -> list[dict[str, Any]]:
        return [one for one in found if one["model"] == "other"]

    async def change(change: Callable[[], None]) -> None:
        number = len(of_other())
        change()
        await until(lambda: len(of_other()) > number)

    async with server.listening() as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        following = asyncio.create_task(follow(client))
        await until(lambda: bool(of_other()))
        for phase, more in [
            (Phase.SLEEPING, {}),
            (Phase.DOWNLOADING, {"progress": 0.25, "waking": True}),
            (Phase.LOADING, {"progress": 0.5, "waking": True}),
            (Phase.READY, {}),
        ]:
            await change(partial(server.engine.set_status, "other", phase, **more))
        await change(partial(server.engine.forget, "other"))
        server.state.lifecycle.begin_drain()
        await following
    assert found[0] == {"model": MODEL, "event": "model_status", "data": {"status": "loaded"}}
    assert [(one["event"], one["data"]) for one in of_other()] == [
        ("model_status", {"status": "loaded"}),
        ("model_status", {"status": "sleeping"}),
        (
            "download_progress",
            {"status": "downloading", "progress": {"stage": "downloading", "value": 0.25}},
        ),
        ("model_status", {"status": "loading", "progress": {"stage": "loading", "value": 0.5}}),
        ("model_status", {"status": "loaded"}),
        ("model_status", {"status": "unloaded"}),
    ]


async def test_metrics_tell_who_sleeps(server: TextServer) -> None:
    server.engine.set_status("other", Phase.SLEEPING, num_wakes=3, wake_time_s=4.5)
    text = (await server.client.get("/metrics")).text
    assert 'tandem_model_sleeping{model_name="other"} 1.0' in text
    assert f'tandem_model_sleeping{{model_name="{MODEL}"}} 0.0' in text
    assert 'tandem_model_wakes_total{model_name="other"} 3.0' in text
    assert 'tandem_model_wake_seconds_total{model_name="other"} 4.5' in text
