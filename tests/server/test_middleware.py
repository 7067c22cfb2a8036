"""What every request passes: ids, the access line, keys, the body limit, CORS."""

import asyncio
import json
import time

import pytest
import structlog
from fastapi import Request
from starlette.responses import StreamingResponse

from server.app import create_app
from server.http.log_fields import annotate
from server.middleware import body_limit
from server.middleware.body_limit import BodyLimitMiddleware
from server.middleware.slow_body import SlowBodyMiddleware
from server.routes import docs
from server.settings import Settings
from tests.helpers.server.fake_engine import FakeEngine
from tests.helpers.server.fake_server import client_of, error_of

KEYS = {"api_keys": ("first-key", "second-key")}


def create(**settings):
    app = create_app(Settings(**settings), FakeEngine())

    @app.post("/echo")
    async def echo(request: Request):
        return {"size": len(await request.body())}

    return app


# Request ids.


async def test_a_sane_request_id_is_echoed():
    async with client_of(create()) as client:
        for given in ("abc", "a" * 128, "req_1-2.3:4/5+6="):
            response = await client.get("/health", headers={"X-Request-Id": given})
            assert response.headers.get_list("x-request-id") == [given]


@pytest.mark.parametrize("given", ["", "a" * 129, "two words", 'quote"', "a\tb", "é".encode()])
async def test_any_other_is_replaced(given):
    async with client_of(create()) as client:
        response = await client.get("/health", headers={"X-Request-Id": given})
        made = response.headers["x-request-id"]
        assert len(made) == 32
        assert made.isalnum()


async def test_ids_differ_and_refusals_carry_one():
    async with client_of(create(**KEYS)) as client:
        ids = {(await client.get("/nothing")).headers["x-request-id"] for _ in range(10)}
    assert len(ids) == 10


async def test_log_lines_of_a_request_carry_its_id():
    app = create()
    log = structlog.get_logger("server.test")

    @app.get("/log")
    async def write_log():
        log.info("inside")
        return {}

    processors = [structlog.contextvars.merge_contextvars]
    with structlog.testing.capture_logs(processors=processors) as lines:
        await client_of(app).get("/log", headers={"X-Request-Id": "mine"})
    inside = next(line for line in lines if line["event"] == "inside")
    assert inside["request_id"] == "mine"
    assert "request_id" not in structlog.contextvars.get_contextvars()


# HEAD.


async def test_head_is_a_get_without_a_body():
    app = create(api_keys=("zebra",))

    @app.get("/items/{item}")
    async def get_item(item: str):
        return {"item": item}

    @app.post("/things")
    async def make_thing():
        return {}

    keyed = {"Authorization": "Bearer zebra"}
    async with client_of(app) as client:
        got = await client.get("/items/a", headers=keyed)
        asked = await client.head("/items/a", headers=keyed)
        assert (got.status_code, asked.status_code, asked.content) == (200, 200, b"")
        assert asked.headers["content-length"] == str(len(got.content))
        assert (await client.head("/health")).status_code == 200
        assert (await client.head("/items/a")).status_code == 401
        refused = await client.head("/things", headers=keyed)
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST")


# The access line.


async def test_one_debug_line_per_request():
    app = create()

    @app.get("/items/{item}")
    async def get_item(item: str, request: Request):
        annotate(request, model="m", num_prompt_tokens=3)
        annotate(request, num_generation_tokens=4)
        return {}

    with structlog.testing.capture_logs() as lines:
        await client_of(app).get("/items/private?q=private")
    [line] = [line for line in lines if line["event"] == "request"]
    assert line.pop("duration_s") >= 0
    assert line == {
        "event": "request",
        "log_level": "debug",
        "method": "GET",
        "route": "/items/{item}",
        "status": 200,
        "model": "m",
        "num_prompt_tokens": 3,
        "num_generation_tokens": 4,
    }


async def test_a_stream_is_logged_when_it_ends():
    app = create()
    may_end = asyncio.Event()

    @app.get("/stream")
    async def stream():
        async def body():
            yield b"a"
            await may_end.wait()
            yield b"b"

        return StreamingResponse(body())

    with structlog.testing.capture_logs() as lines:
        async with client_of(app) as client:
            request = asyncio.create_task(client.get("/stream"))
            await asyncio.sleep(0.05)
            assert not lines
            may_end.set()
            assert (await request).text == "ab"
    assert [line["status"] for line in lines] == [200]


async def test_methods_made_up_by_clients_do_not_become_labels():
    app = create()
    async with client_of(app) as client:
        await client.request("BREW", "/pot")
        text = (await client.get("/metrics")).text
    assert "BREW" not in text
    assert 'method="OTHER"' in text


# Keys.


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer first-key"},
        {"Authorization": "bearer second-key"},
        {"Authorization": "Bearer   second-key "},
        {"X-Api-Key": "second-key"},
        {"Authorization": "Basic dXNlcjpmaXJzdC1rZXk="},  # user:first-key
        {"Authorization": "basic OnNlY29uZC1rZXk="},  # :second-key
    ],
)
async def test_each_key_opens_in_each_way(headers):
    assert (await client_of(create(**KEYS)).get("/version", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer first-ke"},
        {"Authorization": "Bearer first-key2"},
        {"Authorization": "Bearer FIRST-KEY"},
        {"Authorization": "Basic first-key"},
        {"Authorization": "Basic Zmlyc3Qta2V5"},  # first-key
        {"Authorization": "Basic Zmlyc3Qta2V5Og=="},  # first-key:
        {"Authorization": "first-key"},
        {"Authorization": b"Bearer \xff\xfe"},
        {"X-Api-Key": ""},
        {"X-Api-Key": "first-key,second-key"},
        {"Authorization": "Basic first-key", "X-Api-Key": "first-key"},
    ],
)
async def test_anything_else_is_refused(headers):
    response = await client_of(create(**KEYS)).get("/version", headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert "first-key" not in response.text


async def test_the_page_of_the_api_is_open_and_asks_for_the_key_itself():
    async with client_of(create(**KEYS)) as client:
        pages = ("/", "/docs", "/playground/main.js", "/playground/vendor/preact.js")
        for path in (*pages, *(f"/docs/{name}" for name in docs.FILES.names)):
            assert (await client.get(path)).status_code == 200, path
            assert (await client.head(path)).status_code == 200, path
            refused = await client.post(path)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
        assert 'id="key-form"' in (await client.get("/docs")).text
        assert (await client.get("/docs/nothing")).status_code == 404
        for path in ("/openapi.json", "/docs/", "/docs/start.js/x"):
            assert (await client.get(path)).status_code == 401, path


async def test_every_route_but_the_probes_is_guarded():
    app = create(**KEYS)
    paths = {path for route in app.routes if (path := getattr(route, "path", None))}
    paths |= set(app.openapi()["paths"])
    open_paths = {"/health", "/ready"}
    assert open_paths <= paths
    paths.remove("/ready/{model_id}")  # a probe
    paths.remove("/v1/images/files/{name}")  # its names are secrets: see test_images_stored.py
    paths -= {"/", "/docs", "/docs/{name}", "/playground/{name:path}"}  # pages
    assert {"/openapi.json", "/metrics", "/v1/chat/completions"} <= paths
    odd = {"/no/such/route", "/health/", "//ready/x", "//health", "/HEALTH", "/v1/%2e%2e/health"}
    async with client_of(app) as client:
        for path in (paths - open_paths) | odd:
            for method in ("GET", "POST", "OPTIONS", "DELETE"):
                response = await client.request(method, f"http://test{path}")
                assert response.status_code == 401, f"{method} {path}"
        for path in open_paths:
            assert (await client.get(path)).status_code == 200


async def test_without_keys_nothing_is_asked():
    assert (await client_of(create()).get("/version")).status_code == 200


# CORS.


async def test_no_cors_headers_unless_configured():
    async with client_of(create()) as client:
        response = await client.get("/health", headers={"Origin": "https://app.example"})
    assert not [name for name in response.headers if name.startswith("access-control")]


async def test_a_preflight_passes_without_a_key_and_refusals_can_be_read():
    app = create(cors_allow_origins=("https://app.example",), **KEYS)
    origin = {"Origin": "https://app.example"}
    async with client_of(app) as client:
        asked = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        preflight = await client.options("/v1/chat/completions", headers={**origin, **asked})
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        refused = await client.get("/version", headers=origin)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://app.example"
        assert "X-Request-Id" in refused.headers["access-control-expose-headers"]
        other = await client.get("/health", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


# The body limit.

LIMIT = 2048


async def pieces(*sizes):
    for size in sizes:
        yield b"x" * size


@pytest.mark.parametrize("sizes", [(LIMIT,), (LIMIT - 1, 1), (1,) * 100, ()])
async def test_bodies_up_to_the_limit_pass(sizes):
    async with client_of(create(max_body_bytes=LIMIT)) as client:
        response = await client.post("/echo", content=pieces(*sizes))
        assert response.json() == {"size": sum(sizes)}
        response = await client.post("/echo", content=b"x" * sum(sizes))
        assert response.json() == {"size": sum(sizes)}


@pytest.mark.parametrize("sizes", [(LIMIT + 1,), (LIMIT, 1), (1000, 1000, 1000, 1000)])
async def test_larger_ones_are_refused_with_and_without_a_length(sizes, monkeypatch):
    monkeypatch.setattr(body_limit, "_LINGER_S", 100)
    async with client_of(create(max_body_bytes=LIMIT)) as client:
        for content in (pieces(*sizes), b"x" * sum(sizes)):
            start_s = time.perf_counter()
            response = await client.post("/echo", content=content)
            error = error_of(response, 413)
            assert error["code"] == "request_too_large"
            assert str(LIMIT) in error["message"]
            assert response.headers["connection"] == "close"
            assert response.headers["x-request-id"]
            assert time.perf_counter() - start_s < 50, "waited for a body that had ended"


async def test_the_limit_also_holds_for_the_json_routes():
    async with client_of(create(max_body_bytes=LIMIT)) as client:
        headers = {"Content-Type": "application/json"}
        for content in (pieces(LIMIT, LIMIT), b"x" * 2 * LIMIT):
            response = await client.post("/v1/completions", content=content, headers=headers)
            assert response.status_code == 413


async def test_a_length_that_lies_does_not_help():
    async with client_of(create(max_body_bytes=LIMIT)) as client:
        response = await client.post(
            "/echo", content=pieces(LIMIT, LIMIT), headers={"Content-Length": "5"}
        )
    assert response.status_code == 413


@pytest.mark.parametrize(("more_body", "num_receives"), [(False, 1), (True, 2)])
async def test_the_rest_of_a_body_is_awaited_only_if_there_is_one(more_body, num_receives):
    received, sent = [], []

    async def receive():
        received.append(1)
        if len(received) > num_receives:
            await asyncio.sleep(60)  # as a web server does once the body has ended
        has_more = more_body and len(received) == 1
        return {"type": "http.request", "body": b"x" * 20, "more_body": has_more}

    async def send(message):
        sent.append(message)

    async def read_body(scope, receive, send):
        while (await receive())["more_body"]:
            pass

    scope = {"type": "http", "headers": [], "method": "POST"}
    async with asyncio.timeout(30):
        await BodyLimitMiddleware(read_body, max_body_bytes=10)(scope, receive, send)
    assert sent[0]["status"] == 413
    assert len(received) == num_receives
    assert not sent[-1].get("more_body")


# The time for a body.


class SlowSender:
    """Sends pieces with pauses before them, and then nothing; notes what it is answered."""

    def __init__(self, *pieces: tuple[float, bytes], ends: bool = True):
        self._pieces = [(pause_s, body, True) for pause_s, body in pieces]
        if ends:
            self._pieces.append((0.0, b"", False))
        self.sent = []

    async def receive(self):
        if not self._pieces:
            await asyncio.sleep(60)
        pause_s, body, more_body = self._pieces.pop(0)
        await asyncio.sleep(pause_s)
        return {"type": "http.request", "body": body, "more_body": more_body}

    async def send(self, message):
        self.sent.append(message)

    async def post(self, app):
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/echo",
            "query_string": b"",
            "headers": [(b"content-type", b"text/plain")],
        }
        async with asyncio.timeout(30):
            await app(scope, self.receive, self.send)
        return self.sent[0]["status"], json.loads(self.sent[1]["body"])


SLOW = {"body_timeout_s": 0.2, "min_body_bytes_per_s": 1000}


@pytest.mark.parametrize(
    ("pieces", "ends"),
    [((), False), (((0.01, b"x"),), False), (((0.05, b"x"),) * 10, True), (((0.4, b"x"),), True)],
    ids=["nothing", "no end", "drops", "late"],
)
async def test_a_body_that_takes_too_long_is_answered_408(pieces, ends):
    sender = SlowSender(*pieces, ends=ends)
    status, body = await sender.post(create(**SLOW))
    assert status == 408
    assert body["error"]["code"] == "request_timeout"
    assert "0.2 s" in body["error"]["message"]
    headers = dict(sender.sent[0]["headers"])
    assert headers[b"connection"] == b"close"
    assert headers[b"x-request-id"]


async def test_a_large_body_may_take_its_time():
    pieces = ((0.1, b"x" * 1000),) * 8  # at twenty times the rate asked for
    app = create(body_timeout_s=0.5, min_body_bytes_per_s=500)
    assert await SlowSender(*pieces).post(app) == (200, {"size": 8000})


async def test_an_answer_may_take_longer_than_its_request():
    app = create(**SLOW)

    @app.post("/think")
    async def think(request: Request):
        await request.body()
        await asyncio.sleep(0.4)
        return {"left": await request.is_disconnected()}

    assert (await client_of(app).post("/think", content=b"x")).json() == {"left": False}


async def test_nothing_is_late_behind_a_body():
    messages = [{"type": "http.request", "body": b"x"}, {"type": "http.disconnect"}]

    async def receive():
        await asyncio.sleep(0.01)
        return messages.pop(0)

    async def app(scope, receive, send):
        await receive()
        await asyncio.sleep(0.4)
        assert await receive() == {"type": "http.disconnect"}

    await SlowBodyMiddleware(app, 0.2, 1000)({"type": "http"}, receive, None)
    assert not messages


async def test_what_is_no_request_passes():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope)

    for middleware in (BodyLimitMiddleware(app, 1), SlowBodyMiddleware(app, 1, 1)):
        await middleware({"type": "lifespan"}, None, None)
    assert seen == [{"type": "lifespan"}] * 2
