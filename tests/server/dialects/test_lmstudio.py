"""LM Studio's routes for models, over a scripted engine."""

from pathlib import Path
from typing import Any

import pytest

from engine.contract.status import Phase
from tests.helpers.server.fake_server import answer_of, error_of
from tests.helpers.server.text_server import MODEL, TextServer, text_info


@pytest.fixture
async def server(tokenizer_folder: Path) -> TextServer:
    settings: dict[str, Any] = {"enable_runtime_loading": True, "loadable_models": ["spare=x"]}
    server = TextServer(tokenizer_folder, **settings)
    server.engine.make_info = lambda spec: text_info(tokenizer_folder, spec.name)
    return server


async def loaded(server: TextServer) -> dict[str, bool]:
    cards = answer_of(await server.client.get("/api/v1/models"))["models"]
    kept = (MODEL, "spare")
    return {card["key"]: card["loaded_instances"] != [] for card in cards if card["key"] in kept}


async def test_models_are_listed_loaded_and_unloaded(server: TextServer) -> None:
    [card, *_] = answer_of(await server.client.get("/api/v1/models"))["models"]
    assert (card["type"], card["key"], card["loaded_instances"][0]["id"]) == ("llm", MODEL, MODEL)
    assert card["max_context_length"] == card["loaded_instances"][0]["config"]["context_length"]
    assert await loaded(server) == {MODEL: True, "spare": False}
    body = {"model": "spare", "context_length": 64, "flash_attention": True}
    answer = answer_of(await server.client.post("/api/v1/models/load", json=body))
    assert (answer["instance_id"], answer["status"]) == ("spare", "loaded")
    assert await loaded(server) == {MODEL: True, "spare": True}

    unloading = {"instance_id": MODEL}
    assert answer_of(await server.client.post("/api/v1/models/unload", json=unloading)) == unloading
    assert await loaded(server) == {MODEL: False, "spare": True}
    for _ in range(2):  # a model has one instance, so that it is not loaded twice
        body = {"model": MODEL, "echo_load_config": True}
        answer = answer_of(await server.client.post("/api/v1/models/load", json=body))
        assert (answer["instance_id"], answer["type"]) == (MODEL, "llm")
        assert answer["load_config"]["context_length"] > 0 and answer["load_time_seconds"] < 9
    assert await loaded(server) == {MODEL: True, "spare": True}


async def test_failures_are_objects(server: TextServer) -> None:
    for path, body, status in (
        ("load", {"model": "unknown"}, 404),
        ("load", {"model": MODEL, "context_length": 0}, 400),
        ("load", {"model": MODEL, "unknown": 1}, 400),
        ("unload", {"instance_id": "unknown"}, 404),
        ("nowhere", {}, 404),
    ):
        response = await server.client.post(f"/api/v1/models/{path}", json=body)
        assert response.status_code == status and response.json()["error"]["message"]


async def test_a_request_with_autoload_off_wakes_nothing(server: TextServer) -> None:
    server.engine.set_status(MODEL, Phase.SLEEPING)
    body = {"prompt": "a", "max_tokens": 1}
    response = await server.client.post("/v1/completions?autoload=false", json=body)
    error = error_of(response, 503)
    assert (error["code"], error["param"]) == ("model_not_ready", "autoload")
    assert not (await loaded(server))[MODEL]
    server.engine.set_status(MODEL, Phase.READY)
    assert (await server.client.post("/v1/completions?autoload=0", json=body)).status_code == 200
