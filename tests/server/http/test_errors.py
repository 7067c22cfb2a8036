"""Every failure has one shape and one status, and tells nothing it should not."""

import json
from typing import Annotated, Any

import httpx
import msgspec
import pytest
from fastapi import APIRouter, FastAPI
from pydantic import BaseModel, ConfigDict, Field

from engine import errors as engine_errors
from engine.errors import all_error_types
from server.http import errors
from server.http.json_route import MAX_CONTAINERS, MAX_NAMED, MAX_STRINGS, MAX_VALUES, JsonRoute
from tests.helpers.server.fake_server import answer_of, client_of, error_of

SECRET = "/srv/models/secret"

router = APIRouter(route_class=JsonRoute)


class Body(BaseModel):
    model_config = ConfigDict(strict=True)
    number: Annotated[int, Field(ge=1, le=9)]
    words: list[str] = Field([], max_length=2)


@router.post("/echo")
async def echo(body: Body) -> dict[str, int]:
    return {"number": body.number}


@pytest.fixture
async def client() -> httpx.AsyncClient:
    app = FastAPI()
    app.include_router(router)
    errors.install(app)

    @app.get("/raise/{name}")
    async def fail(name: str) -> None:
        raise getattr(engine_errors, name)(f"about {SECRET}", param="p")

    return client_of(app)


def test_every_error_type_has_its_own_row() -> None:
    assert set(errors.STATUS_TABLE) == set(all_error_types())


def test_statuses_say_whose_fault_it_is() -> None:
    for kind, row in errors.STATUS_TABLE.items():
        if issubclass(kind, engine_errors.RequestError):
            assert row.status in (400, 403, 404, 409), kind
        if row.status in (429, 503):
            assert row.retry_after_s, kind
    for name in ("QueueFull", "Draining", "ModelNotReady", "EngineDead"):
        assert errors.STATUS_TABLE[getattr(engine_errors, name)].status in (429, 503), name


@pytest.mark.parametrize("kind", all_error_types(), ids=lambda kind: kind.__name__)
async def test_every_error_is_answered(
    client: httpx.AsyncClient, kind: type[engine_errors.EngineError]
) -> None:
    response = await client.get(f"/raise/{kind.__name__}")
    row = errors.STATUS_TABLE[kind]
    error = error_of(response, row.status)
    assert (error["type"], error["code"], error["param"]) == (row.type, kind.code, "p")
    assert (SECRET in error["message"]) == row.show_message
    assert (response.headers.get("retry-after") is not None) == (row.retry_after_s is not None)


def test_an_error_type_from_outside_the_table_takes_its_ancestors_row() -> None:
    class Fresh(engine_errors.QueueFull):
        code = "fresh"

    assert errors.status_row(Fresh("x")).status == 429


def test_whoever_raised_it_may_know_better_when_to_come_back() -> None:
    error = engine_errors.QueueFull("full")
    error.retry_after_s = 17
    assert errors.engine_error_response(error).headers["retry-after"] == "17"


def test_unexpected_exceptions_show_nothing() -> None:
    response = errors.engine_error_response(RuntimeError(SECRET))
    assert response.status_code == 500
    assert SECRET.encode() not in response.body
    assert json.loads(bytes(response.body))["error"]["code"] == "internal_error"


async def test_a_dialects_paths_have_its_shape() -> None:
    app = FastAPI()
    errors.install(app, {"/other/": lambda facts: json.dumps([facts.status, facts.code]).encode()})

    @app.get("/other/{name}")
    @app.get("/raise/{name}")
    async def fail(name: str) -> None:
        raise getattr(engine_errors, name)("é" * 100, param="p")

    client = client_of(app)
    response = await client.get("/other/QueueFull")
    assert (response.status_code, response.json()) == (429, [429, "queue_full"])
    assert response.headers["retry-after"] == "1"
    assert response.headers["content-length"] == str(len(response.content))
    assert (await client.get("/other/no/where")).json() == [404, "not_found"]
    assert error_of(await client.get("/raise/QueueFull"), 429)["code"] == "queue_full"
    assert error_of(await client.get("/others"), 404)["code"] == "not_found"


async def test_unknown_routes_and_methods(client: httpx.AsyncClient) -> None:
    response = await client.get("/nowhere")
    assert error_of(response, 404)["code"] == "not_found"
    response = await client.get("/echo")
    assert response.headers["allow"] == "POST"
    assert error_of(response, 405)["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "number", "required"),
        ({"number": 0}, "number", "greater than or equal to 1"),
        ({"number": "secret-7"}, "number", "must be a valid integer; got a string"),
        ({"number": None}, "number", "got null"),
        ({"number": 1, "words": ["a", "b", "c"]}, "words", "at most 2 items"),
        ({"number": 1, "words": ["a", 5]}, "words[1]", "must be a valid string; got an integer"),
        ({"number": 1, "words": "secret-7"}, "words", "must be an array; got a string"),
        ([], None, "must be an object; got an array"),
        ("secret-7", None, "must be an object; got a string"),
        (None, None, "must be an object; got null"),
    ],
    ids=str,
)
async def test_bad_values_name_field_kind_and_bound(
    client: httpx.AsyncClient, body: Any, param: str | None, says: str
) -> None:
    response = await client.post(
        "/echo", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    error = error_of(response, 400)
    assert error["param"] == param
    assert error["message"].startswith(param or "the body")
    assert says in error["message"]
    assert "secret-7" not in response.text
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"nope", b'{"number": 1} x', b'{"number": NaN}', b'{"number": 1e999}'),
        *(b'{"number": Infinity}', b'"\xff"', b'{"x": "\\ud800"}', b"[" * 100_000, b"\x00"),
        *(b"\xef\xbb\xbf{}", b"{'number': 1}"),
    ],
    ids=lambda content: repr(content[:20]),
)
async def test_what_is_not_json_is_refused(client: httpx.AsyncClient, content: bytes) -> None:
    response = await client.post(
        "/echo", content=content, headers={"Content-Type": "application/json"}
    )
    assert "the body" in error_of(response)["message"]


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("application/vnd.x+json", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("application/jsonp", 415),
        ("", 415),
        (None, 415),
    ],
)
async def test_only_json_is_read(
    client: httpx.AsyncClient, content_type: str | None, status: int
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    response = await client.post("/echo", content=b'{"number": 5}', headers=headers)
    assert response.status_code == status
    if status == 415:
        assert error_of(response, 415)["code"] == "unsupported_media_type"


@pytest.mark.parametrize(("coding", "status"), [("gzip", 415), ("Identity", 200), ("", 200)])
async def test_compressed_bodies_are_called_that(
    client: httpx.AsyncClient, coding: str, status: int
) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    response = await client.post("/echo", content=b'{"number": 5}', headers=headers)
    assert response.status_code == status
    if status == 415:
        assert "Content-Encoding" in error_of(response, 415)["message"]


@pytest.mark.parametrize(
    ("item", "most", "said"),
    [
        (b"1", MAX_VALUES, "values"),
        (b"[]", MAX_CONTAINERS, "arrays and objects"),
        (b"{}", MAX_CONTAINERS, "arrays and objects"),
        (b'"a:b"', MAX_NAMED, "named values"),
        (b'"ab"', MAX_STRINGS, "strings"),
    ],
)
async def test_what_takes_long_to_decode_is_refused_undecoded(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, item: bytes, most: int, said: str
) -> None:
    monkeypatch.setattr(msgspec.json, "Decoder", lambda **options: pytest.fail("decoded"))
    body = b"[" + b",".join([item] * (most + 2)) + b"]"
    headers = {"Content-Type": "application/json"}
    response = await client.post("/echo", content=body, headers=headers)
    assert f"more than {most} {said}" in error_of(response)["message"]


async def test_quotes_within_strings_are_no_strings(client: httpx.AsyncClient) -> None:
    """A long text in JSON is one value, whatever it quotes."""
    text = '"a", ' * (MAX_STRINGS + 2)
    answer_of(await client.post("/echo", json={"number": 5, "more": text}))


async def test_keys_of_the_client_come_back_only_in_plain_characters() -> None:
    path = errors.field_path(("logit_bias", 'x"\r\n<é>', 3))
    assert errors._sanitised(path) == "logit_bias.x??????[3]"
    assert len(errors._sanitised("y" * 10_000)) == 128
