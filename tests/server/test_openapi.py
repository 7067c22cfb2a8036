"""The OpenAPI document tells the truth: what it allows is mostly answered, nothing breaks."""

from pathlib import Path
from typing import Any

import pytest
from schemathesis import GenerationMode

from engine.contract.status import Phase
from tests.helpers.server.generated import send_generated
from tests.helpers.server.text_server import MAX_MODEL_LEN, MODEL, VOCAB_SIZE, TextServer, text_info

TEXT_ROUTES = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize")


async def document(server: TextServer) -> dict[str, Any]:
    answer: dict[str, Any] = (await server.client.get("/openapi.json")).json()
    return answer


async def test_it_names_the_served_models_and_their_limits(server: TextServer) -> None:
    schemas = (await document(server))["components"]["schemas"]
    chat = schemas["ChatCompletionRequest"]["properties"]
    assert chat["model"]["anyOf"][0]["enum"] == [MODEL, ""]
    assert chat["max_tokens"]["anyOf"][0]["maximum"] == MAX_MODEL_LEN - 1
    assert chat["stop_token_ids"]["anyOf"][0]["items"]["maximum"] == VOCAB_SIZE - 1
    assert chat["priority"]["anyOf"][0]["enum"] == [0]
    prompt = schemas["CompletionRequest"]["properties"]["prompt"]["anyOf"]
    assert prompt[2]["items"]["maximum"] == VOCAB_SIZE - 1
    assert prompt[3]["items"]["items"]["maximum"] == VOCAB_SIZE - 1
    assert schemas["DetokenizeRequest"]["properties"]["tokens"]["items"]["maximum"] == (
        VOCAB_SIZE - 1
    )


async def test_it_follows_what_becomes_ready(tokenizer_folder: Path) -> None:
    infos = [text_info(tokenizer_folder, "a"), text_info(tokenizer_folder, "b", max_model_len=512)]
    server = TextServer(tokenizer_folder, *infos, engine={"scheduling_policy": "priority"})

    async def chat() -> Any:
        schemas = (await document(server))["components"]["schemas"]
        return schemas["ChatCompletionRequest"]["properties"]

    assert (await chat())["model"]["enum"] == ["a", "b"]
    schemas = (await document(server))["components"]["schemas"]
    assert schemas["ChatCompletionRequest"]["example"]["model"] == "a"
    assert (await chat())["max_tokens"]["anyOf"][0]["maximum"] == 511
    assert "enum" not in (await chat())["priority"]["anyOf"][0]
    server.engine.set_status("b", Phase.LOADING)
    assert (await chat())["max_tokens"]["anyOf"][0]["maximum"] == MAX_MODEL_LEN - 1
    server.engine.set_status("a", Phase.LOADING)
    assert (await chat())["max_tokens"]["anyOf"][0]["maximum"] == 2**31 - 1


async def test_the_page_can_try_what_draws_and_what_takes_a_file(server: TextServer) -> None:
    shown = await document(server)
    schemas = shown["components"]["schemas"]
    assert schemas["ImageGenerationRequest"]["example"].keys() == {"prompt"}
    assert "model" not in schemas["ChatCompletionRequest"]["example"]  # the only one
    for route in ("edits", "variations", "upscale", "matte"):
        body = shown["paths"][f"/v1/images/{route}"]["post"]["requestBody"]["content"]
        assert list(body) == ["multipart/form-data", "application/json"]
        fields = body["multipart/form-data"]["schema"]["properties"]
        assert fields["model"]["example"] == "", "left out unless it is filled in"


async def test_every_failure_is_documented_in_one_shape(server: TextServer) -> None:
    paths = (await document(server))["paths"]
    for path in TEXT_ROUTES:
        responses = paths[path]["post"]["responses"]
        assert {"200", "400", "401", "404", "413", "415", "503"} <= responses.keys()
        assert "422" not in responses
        for status, response in responses.items():
            schema = response["content"]["application/json"]["schema"]
            assert status == "200" or schema["$ref"].endswith("/ErrorAnswer")
    for path in TEXT_ROUTES[:2]:
        responses = paths[path]["post"]["responses"]
        assert responses["200"]["content"]["text/event-stream"]["itemSchema"]["required"] == [
            "data"
        ]
        assert "429" in responses


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("path", [*TEXT_ROUTES, "/v1/models", "/v1/models/{model_id}"])
def test_generated_requests(tokenizer_folder: Path, path: str, mode: GenerationMode) -> None:
    """Of what the document allows at least a fifth is answered, and nothing is a 5xx. What is
    answered has the documented status, type and schema."""
    if path == "/v1/models" and mode is GenerationMode.NEGATIVE:
        return  # nothing about this request can be wrong
    app = TextServer(tokenizer_folder).app
    method = "POST" if path in TEXT_ROUTES else "GET"
    # Of chats, whose fields exclude each other most, 45 % are answered: by chance fewer than a
    # fifth of 80 once in a million runs.
    num_examples = 80 if mode is GenerationMode.POSITIVE else 30
    statuses, accepted = send_generated(app, path, method, mode=mode, num_examples=num_examples)
    if mode is GenerationMode.POSITIVE:
        assert statuses[200] >= 0.2 * statuses.total(), statuses
    else:
        assert not accepted
