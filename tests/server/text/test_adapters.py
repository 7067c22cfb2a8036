"""Adapters are asked for as models: the routes name the base model's engine and say which one."""

from pathlib import Path

import pytest

from engine.contract.status import Phase
from tests.helpers.server.fake_server import error_of
from tests.helpers.server.text_server import MODEL, TextServer, text_info

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def server(tokenizer_folder: Path) -> TextServer:
    adapters = {"adapters": ("poet", "org/tuned"), "failed_adapters": {"broken": "it holds NaN"}}
    other = text_info(tokenizer_folder, "other")
    return TextServer(tokenizer_folder, text_info(tokenizer_folder, **adapters), other)


async def test_they_are_listed_with_their_parent(server: TextServer) -> None:
    cards = (await server.client.get("/v1/models")).json()["data"]
    found = [(card["id"], card["parent"], card["root"]) for card in cards]
    assert found == [
        (MODEL, None, MODEL),
        ("poet", MODEL, MODEL),
        ("org/tuned", MODEL, MODEL),
        ("other", None, "other"),
    ]
    assert (await server.client.get("/v1/models/org/tuned")).json() == cards[2]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("name", "adapter"), [(MODEL, None), ("poet", "poet")])
async def test_requests_name_the_adapter(
    server: TextServer, name: str, adapter: str | None, stream: bool
) -> None:
    for route, body in (
        ("chat/completions", {"messages": MESSAGES, "max_tokens": 4}),
        ("completions", {"prompt": ["hi", "ho"], "max_tokens": 4}),
        ("responses", {"input": "hi"}),
    ):
        body |= {"model": name, "stream": stream}
        answer = await server.post(f"/v1/{route}", **body)
        assert answer.status_code == 200
        assert f'"model":"{name}"' in answer.text
    assert {(r.model, r.adapter) for r in server.engine.requests} == {(MODEL, adapter)}


async def test_their_tokens_are_the_base_models(server: TextServer) -> None:
    asked = [{"model": name, "messages": MESSAGES} for name in (MODEL, "poet")]
    base, adapted = [(await server.post("/tokenize", **body)).json() for body in asked]
    assert base == adapted
    assert (
        await server.post("/detokenize", model="poet", tokens=base["tokens"])
    ).status_code == 200


async def test_unknown_names_get_all_that_there_are(server: TextServer) -> None:
    answer = await server.post("/v1/chat/completions", model="poe", messages=MESSAGES)
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert error["code"] == "model_not_found"
    assert all(name in error["message"] for name in (MODEL, "poet", "org/tuned", "other"))


async def test_one_that_could_not_be_loaded_gets_the_reason(server: TextServer) -> None:
    error = error_of(await server.post("/v1/completions", model="broken", prompt="hi"), 404)
    assert "it holds NaN" in error["message"]


async def test_adapters_of_a_model_that_does_not_serve_yet_are_awaited(
    tokenizer_folder: Path,
) -> None:
    server = TextServer(tokenizer_folder, engine={"lora": ["poet=/x"]})
    server.engine.set_status(MODEL, Phase.LOADING)
    for name, status in (("poet", 503), ("nope", 404)):
        assert (await server.post("/v1/completions", model=name, prompt="hi")).status_code == status
        assert (await server.client.get(f"/v1/models/{name}")).status_code == status


async def test_a_models_id_comes_before_an_adapters(tokenizer_folder: Path) -> None:
    infos = [text_info(tokenizer_folder, adapters=("b",)), text_info(tokenizer_folder, "b")]
    server = TextServer(tokenizer_folder, *infos)
    assert (
        await server.post("/v1/completions", model="b", prompt="hi", max_tokens=2)
    ).status_code == 200
    [request] = server.engine.requests
    assert (request.model, request.adapter) == ("b", None)


async def test_the_document_names_them(server: TextServer) -> None:
    document = (await server.client.get("/openapi.json")).json()
    model = document["components"]["schemas"]["ChatCompletionRequest"]["properties"]["model"]
    assert model["enum"] == [MODEL, "other", "poet", "org/tuned"]
