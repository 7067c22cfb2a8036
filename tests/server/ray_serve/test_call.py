"""An app in another process: its answer comes in parts, and it sees when the client leaves."""

import asyncio
import contextlib
import pickle
import random

import pytest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from server.http.home import HOME, fresh_digits
from server.ray_serve.call import Head, answer, sent_scope


def scope_of(path: str = "/x") -> dict:
    headers = [(b"content-type", b"application/json")]
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"a=1",
        "headers": headers,
        "app": lambda: None,
        "state": object(),
    }


async def collected(app, scope, body=b"", home=""):
    head, *parts = [part async for part in answer(app, scope, body, home)]
    assert isinstance(head, Head)
    return head, parts


async def test_request_and_answer_go_through_whole():
    async def app(scope, receive, send):
        body = await Request(scope, receive).body()
        await Response(body[::-1], 418, {"x-query": scope["query_string"].decode()})(
            scope, receive, send
        )

    body = random.randbytes(5000)
    head, parts = await collected(app, scope_of(), body)
    assert head.status == 418 and (b"x-query", b"a=1") in head.headers
    assert b"".join(parts) == body[::-1]


async def test_a_part_comes_as_soon_as_it_is_sent():
    seen = asyncio.Event()

    async def parts():
        yield b"one"
        await seen.wait()
        yield b"two"

    async def app(scope, receive, send):
        await StreamingResponse(parts())(scope, receive, send)

    found = []
    async with asyncio.timeout(20):
        async for part in answer(app, scope_of(), b"", ""):
            found.append(part)
            if part == b"one":
                seen.set()
    assert found[1:] == [b"one", b"two"]


async def test_parts_that_have_come_meanwhile_are_one():
    all_sent = asyncio.Event()

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for i in range(10):
            await send({"type": "http.response.body", "body": b"%d" % i, "more_body": i < 9})
        all_sent.set()

    stream = answer(app, scope_of(), b"", "")
    assert isinstance(await anext(stream), Head)
    await all_sent.wait()
    assert [part async for part in stream] == [b"0123456789"]


async def test_the_app_sees_that_the_client_has_left():
    left = asyncio.Event()

    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        assert (await receive())["type"] == "http.disconnect"
        left.set()

    async with asyncio.timeout(20), contextlib.aclosing(answer(app, scope_of(), b"", "")) as parts:
        await anext(parts)
        assert not left.is_set()
    assert left.is_set()


async def test_an_error_of_the_app_is_raised():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError("fault")

    with pytest.raises(KeyError, match="fault"):
        await collected(app, scope_of())


async def test_each_answer_has_the_ids_of_its_server():
    async def app(scope, receive, send):
        await Response(fresh_digits(32))(scope, receive, send)

    answers = await asyncio.gather(*(collected(app, scope_of(), home=f"{i:08x}") for i in range(5)))
    assert [parts[0][-8:] for _, parts in answers] == [b"%08x" % i for i in range(5)]
    assert HOME.get() == ""


def test_another_process_can_read_the_scope():
    sent = pickle.loads(pickle.dumps(sent_scope(scope_of("/v1/x"))))
    assert sent["path"] == "/v1/x" and sent["headers"] and "app" not in sent
