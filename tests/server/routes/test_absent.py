"""Paths of other servers: what is not here says what to use instead, and little things are here."""

import json
import random
from dataclasses import replace

import pytest

from server.http.absent import _INSTEAD
from tests.helpers.server.text_server import MODEL, TextServer

SHAPES = {"/api/": {"error"}, "/sdapi/": {"error", "detail", "body", "errors"}}


@pytest.mark.parametrize("path", _INSTEAD)
async def test_what_is_not_here_says_what_to_use(server: TextServer, path: str) -> None:
    keys = next((keys for start, keys in SHAPES.items() if path.startswith(start)), {"error"})
    if path.startswith("/v1/messages"):
        keys = {"type", "error"}
    for each in (path, f"{path}/conv_1/items"):
        for method in ("GET", "POST", "DELETE"):
            response = await server.client.request(method, each)
            assert response.status_code == 404, f"{method} {each}"
            assert response.json().keys() == keys
            assert f"there is no {path} on this server: " in response.text
    other = (await server.client.get(f"{path}x")).text
    assert "there is no such route; see /docs" in other


async def test_a_served_model_is_there_when_it_is_pulled(server: TextServer) -> None:
    for name in (MODEL, f"{MODEL}:latest"):
        pulled = await server.post("/api/pull", model=name)
        assert pulled.headers["content-type"] == "application/x-ndjson"
        assert [json.loads(line) for line in pulled.text.splitlines()] == [{"status": "success"}]
        pulled = await server.post("/api/pull", name=name, stream=False)
        assert pulled.json() == {"status": "success"}
    refused = await server.post("/api/pull", model="nobody")
    assert (refused.status_code, refused.json().keys()) == (404, {"error"})
    assert (await server.post("/api/pull")).status_code == 400


async def test_a_model_in_sglangs_words(server: TextServer) -> None:
    digest = f"{random.getrandbits(256):064x}"
    served = server.engine.served
    served[MODEL] = replace(served[MODEL], digest=digest)
    for path in ("/get_model_info", "/model_info", f"/get_model_info?model={MODEL}"):
        assert (await server.client.get(path)).json() == {
            "model_path": MODEL,
            "tokenizer_path": MODEL,
            "is_generation": True,
            "weight_version": digest,
        }
    assert (await server.client.get("/get_model_info?model=nobody")).status_code == 404


async def test_no_completions_are_stored(server: TextServer) -> None:
    listed = (await server.client.get("/v1/chat/completions")).json()
    assert (listed["object"], listed["data"], listed["has_more"]) == ("list", [], False)


async def test_memory_is_said_elsewhere(server: TextServer) -> None:
    memory = (await server.client.get("/sdapi/v1/memory")).json()
    see = {"error": "see GET /metrics"}
    assert memory == {"ram": see, "cuda": see}
