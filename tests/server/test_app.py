"""How the app is put together: lifespan, isolation, one error shape, documentation."""

import pytest
from fastapi import FastAPI
from pydantic import TypeAdapter
from starlette.requests import ClientDisconnect

from server.app import build_routes, create_app
from server.settings import Settings
from tests.helpers.server.fake_engine import FakeEngine
from tests.helpers.server.fake_server import client_of


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def app(engine):
    return create_app(Settings(), engine)


async def test_the_engine_starts_and_stops_with_the_app(engine):
    app = create_app(Settings(drain_timeout_s=7), engine)
    assert not engine.started
    async with app.router.lifespan_context(app):
        assert engine.started
        assert not app.state.tandem.lifecycle.draining
        assert not engine.stopped
    assert app.state.tandem.lifecycle.draining
    assert engine.stopped
    assert engine.stop_timeouts == [pytest.approx(7, abs=0.5)]


async def test_apps_do_not_share_state(app):
    other = create_app(Settings(), FakeEngine())
    app.state.tandem.lifecycle.begin_drain()
    async with client_of(app) as first, client_of(other) as second:
        assert (await first.get("/ready")).status_code == 503
        assert (await second.get("/ready")).status_code == 200


async def test_a_fault_of_ours_shows_nothing_of_itself(app):
    async def crash():
        raise RuntimeError("/secret/path and a prompt")

    app.add_api_route("/crash", crash)
    response = await client_of(app).get("/crash", headers={"X-Request-Id": "abc"})
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    assert response.headers["x-request-id"] == "abc"


async def test_a_client_that_left_is_no_fault(app, capsys):
    async def read():
        raise ClientDisconnect

    app.add_api_route("/read", read)
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "path": "/read",
        "raw_path": b"/read",
        "query_string": b"",
        "headers": [],
        "scheme": "http",
        "server": ("test", 80),
        "state": {},
    }
    sent = []

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    assert sent == []


async def test_the_api_is_documented(app):
    async with client_of(app) as client:
        document = (await client.get("/openapi.json")).json()
        assert (await client.get("/docs")).status_code == 200
    paths = document["paths"]
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize", "/ready"):
        assert path in paths, path
    operations = [
        operation["operationId"] for item in paths.values() for operation in item.values()
    ]
    assert len(set(operations)) == len(operations)


@pytest.mark.parametrize("path", ["/health", "/llm/health"])
async def test_a_proxy_may_or_may_not_strip_the_root_path(engine, path):
    app = create_app(Settings(root_path="/llm", api_keys=("k",)), engine)
    async with client_of(app) as client:
        assert (await client.get(path)).status_code == 200
        assert (await client.get(path.replace("health", "version"))).status_code == 401
        document = await client.get(
            path.replace("health", "openapi.json"), headers={"X-Api-Key": "k"}
        )
        assert document.json()["servers"] == [{"url": "/llm"}]


async def test_no_request_waits_for_routes_to_be_built(engine, monkeypatch):
    built = []
    build = TypeAdapter.__init__

    def note(self, *args, **kwargs):
        built.append(args)
        build(self, *args, **kwargs)

    monkeypatch.setattr(TypeAdapter, "__init__", note)
    monkeypatch.setattr("server.app.FastAPI", FastAPI)  # whose routes are its own
    numbers = []
    for prepare in (lambda app: None, build_routes):
        prepare(app := create_app(Settings(), engine))
        built.clear()
        await client_of(app).post("/v1/load_lora_adapter", json={})
        numbers.append(len(built))
    assert numbers[0] > 0
    assert numbers[1] == 0
