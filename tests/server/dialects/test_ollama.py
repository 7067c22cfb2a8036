"""Ollama's routes over the scripted engine, asked by its own client and by hand."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from engine.version import __version__
from tests.helpers.server.embedding_server import MAX_MODEL_LEN as MOST_EMBEDDED
from tests.helpers.server.embedding_server import EmbeddingServer
from tests.helpers.server.fake_embeddings import vector
from tests.helpers.server.fake_engine import Failure
from tests.helpers.server.fake_server import until
from tests.helpers.server.text_server import (
    MAX_MODEL_LEN,
    MODEL,
    TextServer,
    text_info,
    write_tokenizer,
)

MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


def lines_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.text.endswith("\n")
    return [json.loads(line) for line in response.text.splitlines()]


def refusal_of(response: httpx.Response, status: int = 400) -> str:
    """The message of a refused request, which must have Ollama's shape."""
    assert response.status_code == status, response.text
    assert response.json().keys() == {"error"}
    message: str = response.json()["error"]
    return message


async def test_a_whole_chat(server: TextServer) -> None:
    server.say("the fox jumps")
    answer = (await server.post("/api/chat", model=MODEL, messages=MESSAGES, stream=False)).json()
    assert answer["message"] == {"role": "assistant", "content": "the fox jumps"}
    assert (answer["model"], answer["done"], answer["done_reason"]) == (MODEL, True, "stop")
    datetime.fromisoformat(answer["created_at"])
    assert answer["prompt_eval_count"] == len(server.last_request.prompt_token_ids)
    assert answer["eval_count"] == len(server.encode("the fox jumps")) + 1
    assert all(type(answer[name]) is int for name in DURATIONS)
    assert answer["total_duration"] == answer["prompt_eval_duration"] + answer["eval_duration"]


async def test_lines_are_the_default_and_join_to_the_whole_text(server: TextServer) -> None:
    body = {"messages": MESSAGES, "options": {"num_predict": 40, "seed": 5}}
    whole = (await server.post("/api/chat", **body, stream=False)).json()
    *parts, end = lines_of(await server.post("/api/chat", **body))
    assert {part["done"] for part in parts} == {False}
    assert {tuple(part) for part in parts} == {("model", "created_at", "message", "done")}
    text = "".join(part["message"]["content"] for part in parts)
    assert text == whole["message"]["content"]
    assert (end["done"], end["done_reason"]) == (True, "length")
    assert end["message"] == {"role": "assistant", "content": ""}
    assert (end["eval_count"], end["prompt_eval_count"]) == (40, whole["prompt_eval_count"])


async def test_a_prompt_goes_through_the_template_unless_raw(server: TextServer) -> None:
    server.say("fox")
    chat = {"messages": [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]}
    await server.post("/api/chat", **chat, stream=False)
    expected = server.last_request.prompt_token_ids
    answer = await server.post("/api/generate", prompt="hi", system="be", stream=False)
    assert answer.json()["response"] == "fox"
    assert server.last_request.prompt_token_ids == expected
    *parts, end = lines_of(await server.post("/api/generate", prompt="hi", raw=True))
    assert server.last_request.prompt_token_ids == [0, *server.encode("hi")]
    assert "".join(part["response"] for part in parts) == "fox"
    assert (end["response"], end["done_reason"]) == ("", "stop")


async def test_a_model_without_a_template_continues_the_prompt(tmp_path: Path) -> None:
    server = TextServer(write_tokenizer(tmp_path, chat_template=None))
    await server.post("/api/generate", prompt="hi", options={"num_predict": 1})
    assert server.last_request.prompt_token_ids == [0, *server.encode("hi")]
    response = await server.post("/api/generate", prompt="hi", system="be")
    assert "system needs the chat template" in refusal_of(response)
    shown = (await server.post("/api/show", model=MODEL)).json()
    assert shown["capabilities"] == ["completion"]


async def test_a_models_own_sampling_is_shown_and_used(tokenizer_folder: Path) -> None:
    own = {"temperature": 0.3, "top_k": 20.0, "repetition_penalty": 1.05}
    server = TextServer(tokenizer_folder, text_info(tokenizer_folder, default_sampling=own))
    shown = (await server.post("/api/show", model=MODEL)).json()
    assert shown["parameters"] == "temperature 0.3\ntop_k 20\nrepeat_penalty 1.05"
    await server.post("/api/generate", prompt="hi", options={"num_predict": 1, "top_k": 3})
    sampling = server.last_request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.repetition_penalty) == (0.3, 3, 1.05)


async def test_options_reach_the_engine(server: TextServer) -> None:
    options = {
        "num_predict": 3,
        "temperature": 0.5,
        "top_k": 20.0,
        "top_p": 0.9,
        "min_p": 0.1,
        "typical_p": 0.7,
        "repeat_penalty": 1.25,
        "repeat_last_n": 64.0,
        "presence_penalty": 1.5,
        "frequency_penalty": 1,
        "seed": 42,
        "stop": ["\n", "user:"],
        "mirostat": 2,
        "mirostat_tau": 3,
        "num_ctx": 4096,
        "num_thread": 8,
    }
    response = await server.post("/api/chat", messages=MESSAGES, options=options)
    assert "X-Ignored-Fields" not in response.headers
    sampling = server.last_request.sampling
    assert (sampling.max_tokens, sampling.seed, sampling.top_k) == (3, 42, 20)
    assert (sampling.temperature, sampling.top_p, sampling.min_p) == (0.5, 0.9, 0.1)
    assert (sampling.typical_p, sampling.repetition_penalty) == (0.7, 1.25)
    assert (sampling.repeat_last_n, sampling.mirostat, sampling.mirostat_tau) == (64, 2, 3)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1.5, 1)
    options = {"seed": -1, "num_predict": -2}
    await server.post("/api/generate", prompt="a", raw=True, options=options)
    sampling = server.last_request.sampling
    assert sampling.seed is None
    assert sampling.max_tokens == MAX_MODEL_LEN - len(server.last_request.prompt_token_ids)


async def test_a_stop_string_never_shows(server: TextServer) -> None:
    server.say("the quick brown fox")
    *parts, end = lines_of(
        await server.post("/api/chat", messages=MESSAGES, options={"stop": [" brown"]})
    )
    assert "".join(part["message"]["content"] for part in parts) == "the quick"
    assert end["done_reason"] == "stop"


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
THINKING_TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}"
    "{% for m in messages %}<|s|>{{ m.role }} {{ m.name }} {{ m.reasoning_content }}"
    " {{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}<|s|>assistant\n{% if enable_thinking is defined %}"
    "<think>\n{% if not enable_thinking %}\n</think>\n\n{% endif %}{% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tools"), chat_template=THINKING_TEMPLATE)


async def test_calls_and_thoughts(thinker: Path) -> None:
    server = TextServer(thinker, text_info(thinker, max_model_len=2048))
    shown = (await server.post("/api/show", model=MODEL)).json()
    assert shown["capabilities"] == ["completion", "tools", "thinking"]
    call = {"function": {"name": "get_weather", "arguments": {"city": "Zürich"}}}
    server.say("Hm.\n</think>\nWait." + CALL)
    body = {"messages": MESSAGES, "tools": [WEATHER], "think": True}
    whole = (await server.post("/api/chat", **body, stream=False)).json()
    assert whole["message"] == {
        "role": "assistant",
        "content": "Wait.",
        "thinking": "Hm.",
        "tool_calls": [call],
    }
    assert whole["done_reason"] == "stop"
    *parts, end = lines_of(await server.post("/api/chat", **body))
    assert "".join(part["message"]["content"] for part in parts) == "Wait."
    assert "".join(part["message"].get("thinking", "") for part in parts) == "Hm."
    assert end["message"]["tool_calls"] == [call]
    history = [
        *MESSAGES,
        {"role": "assistant", "thinking": "Hm.", "tool_calls": [call]},
        {"role": "tool", "tool_name": "get_weather", "content": "sunny"},
    ]
    server.say("It is sunny.")
    body = {"messages": history, "tools": [WEATHER], "think": False}
    answer = (await server.post("/api/chat", **body, stream=False)).json()
    assert answer["message"] == {"role": "assistant", "content": "It is sunny."}
    prompt = server.last_prompt
    assert "Hm." in prompt and "tool get_weather" in prompt and '"city": "Zürich"' in prompt
    answer = await server.post("/api/generate", prompt="a", think=True, stream=False)
    assert answer.json()["thinking"] == "It is sunny."
    server.say("</think>" + CALL[:-30])
    body = {"messages": MESSAGES, "tools": [WEATHER], "think": True}
    end = lines_of(await server.post("/api/chat", **body, options={"num_predict": 20}))[-1]
    assert (end["done_reason"], "tool_calls" in end["message"]) == ("length", False)


async def test_a_text_is_held_to_its_format(server: TextServer) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for path, asked in (("/api/chat", {"messages": MESSAGES}), ("/api/generate", {"prompt": "a"})):
        for given in ("json", schema):
            options = {"num_predict": 1}
            await server.post(path, **asked, format=given, options=options, stream=False)
            assert server.last_request.sampling.structure is not None
        await server.post(path, **asked, format="", options=options, stream=False)
        assert server.last_request.sampling.structure is None


async def test_what_nobody_knows_is_named(server: TextServer) -> None:
    response = await server.post(
        "/api/chat",
        messages=MESSAGES,
        options={"num_predict": 1, "n": 9, "odd": 1},
        x=1,
        keep_alive=0,
    )
    assert response.headers["X-Ignored-Fields"] == "x, options.n, options.odd"
    assert server.last_request.sampling.n == 1


async def test_log_probabilities(server: TextServer) -> None:
    server.say("fox")
    body = {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2}
    whole = (await server.post("/api/chat", **body, stream=False)).json()
    parts = lines_of(await server.post("/api/chat", **body))
    entries = [entry for part in parts for entry in part.get("logprobs", [])]
    assert entries == whole["logprobs"]
    assert entries and entries[0].keys() == {"token", "logprob", "bytes", "top_logprobs"}


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/api/chat", {"messages": MESSAGES, "options": {"mirostat": 1}}, "mirostat: "),
        ("/api/chat", {"messages": MESSAGES, "options": {"temperature": 9}}, "temperature: must"),
        ("/api/chat", {"messages": MESSAGES, "options": {"temperature": "x"}}, "temperature: must"),
        ("/api/chat", {"messages": MESSAGES, "options": {"num_predict": "x"}}, "num_predict"),
        ("/api/chat", {"messages": MESSAGES, "options": {"num_predict": 2**40}}, "num_predict: "),
        (
            "/api/chat",
            {"messages": MESSAGES, "options": {"num_predict": 255}},
            "num_predict can be",
        ),
        (
            "/api/chat",
            {"messages": MESSAGES, "options": {"repeat_penalty": 1.1, "repeat_last_n": -2}},
            "repeat_last_n: ",
        ),
        ("/api/chat", {"messages": MESSAGES, "options": [1]}, "options: must be an object"),
        ("/api/chat", {"messages": MESSAGES, "stream": "yes"}, "stream: must be"),
        ("/api/chat", {"messages": "hi"}, "messages: must be an array"),
        ("/api/chat", {"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ("/api/chat", {"messages": [{"content": "x"}]}, "messages[0].role: this field is required"),
        ("/api/chat", {"messages": [{"role": "user", "images": ["x"]}]}, "reads no images"),
        ("/api/chat", {"messages": [{"role": "user", "content": "x " * 9999}]}, "tokens"),
        ("/api/generate", {"prompt": "x", "suffix": "y"}, "suffix is not supported"),
        ("/api/generate", {"prompt": "x", "context": [1, 2]}, "context is not supported"),
        ("/api/generate", {"prompt": "x", "images": ["x"]}, "reads no images"),
        ("/api/generate", {"prompt": "x", "raw": True, "images": ["x"]}, "images needs the chat"),
        ("/api/generate", {"prompt": "x", "raw": True, "system": "y"}, "system needs the chat"),
        ("/api/generate", {"prompt": 7}, "prompt: must be a valid string"),
        ("/api/show", {"name": 7}, "name: must be a valid string"),
    ],
)
async def test_refusals(server: TextServer, path: str, body: dict[str, Any], said: str) -> None:
    assert said in refusal_of(await server.post(path, **body))
    assert server.engine.requests == []


@pytest.mark.parametrize("declared", [None, "x-www-form-urlencoded", "octet-stream"])
async def test_bodies_need_not_be_declared(server: TextServer, declared: str | None) -> None:
    """curl declares a form, LiteLLM's asynchronous client bytes."""
    headers = {} if declared is None else {"Content-Type": f"application/{declared}"}
    body = json.dumps({"messages": MESSAGES, "stream": False})
    answer = await server.client.post("/api/chat", content=body, headers=headers)
    assert answer.json()["done"] is True
    assert "valid JSON" in refusal_of(await server.client.post("/api/chat", content="a=b"))


async def test_failures_before_any_route_have_the_shape(tokenizer_folder: Path) -> None:
    server = TextServer(tokenizer_folder, api_keys=("zebra",), max_body_bytes=2000)
    assert "API key" in refusal_of(await server.post("/api/chat", messages=MESSAGES), 401)
    keyed = {"Authorization": "Bearer zebra"}
    client = server.client
    missing = await client.post("/api/nowhere", json={"model": "x"}, headers=keyed)
    assert "no such route" in refusal_of(missing, 404)
    refusal_of(await client.get("/api/chat", headers=keyed), 405)
    big = await client.post("/api/chat", json={"x": "y" * 4000}, headers=keyed)
    assert "larger than 2000 bytes" in refusal_of(big, 413)
    for header in ({"Origin": "http://x"}, {"Content-Type": "text/plain"}):
        text = await client.post("/api/chat", content="{}", headers=keyed | header)
        assert "application/json" in refusal_of(text, 415)
    assert (await client.post("/v1/chat/completions", json={}, headers=keyed)).json()["error"][
        "type"
    ]


async def test_failures_of_the_engine(server: TextServer) -> None:
    server.engine.failure = Failure(after=3)
    *parts, end = lines_of(await server.post("/api/chat", messages=MESSAGES))
    assert parts and end == {"error": server.engine.failure.message}
    refused = await server.post("/api/chat", messages=MESSAGES, stream=False)
    assert refusal_of(refused) == server.engine.failure.message


async def test_an_unknown_fault_shows_nothing(
    server: TextServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.engine.submit_error = RuntimeError("/secret/path")
    server.client = httpx.AsyncClient(
        transport=httpx.ASGITransport(server.app, raise_app_exceptions=False),
        base_url="http://test",
    )
    assert "internal error" in refusal_of(await server.post("/api/chat", messages=MESSAGES), 500)


async def test_a_full_queue_is_a_429(tokenizer_folder: Path) -> None:
    server = TextServer(tokenizer_folder, engine={"max_num_seqs": 1}, max_queued_requests=1)
    server.engine.hold()
    held = [
        asyncio.create_task(server.post("/api/chat", messages=MESSAGES, stream=False))
        for _ in range(2)
    ]
    await until(lambda: len(server.engine.requests) == 2)
    refused = await server.post("/api/generate", prompt="x")
    assert "sequences are running or waiting" in refusal_of(refused, 429)
    assert int(refused.headers["Retry-After"]) >= 1
    server.engine.release()
    assert {response.status_code for response in await asyncio.gather(*held)} == {200}


async def test_models_are_listed_and_described(tokenizer_folder: Path) -> None:
    server = EmbeddingServer(tokenizer_folder, with_text=True)
    digest, size = f"{random.getrandbits(256):064x}", random.randrange(1 << 34)
    facts: dict[str, Any] = {"digest": digest, "file_format": "gguf", "file_bytes": size}
    facts |= {"num_weights": 134_477_952, "weight_type": "Q8_0"}
    plain = server.engine.served["writer"]
    server.engine.served["writer"] = replace(plain, **facts, adapters=("poet",))
    models = (await server.client.get("/api/tags")).json()["models"]
    assert [model["name"] for model in models] == ["writer", "poet", "embedder"]
    assert (models[0]["digest"], models[0]["size"]) == (digest, size)
    assert len({model["digest"] for model in models}) == 3
    assert models[0]["details"] == {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "134.5M",
        "quantization_level": "Q8_0",
    }
    assert models[1]["details"]["parent_model"] == "writer"
    server.engine.served["writer"] = replace(plain, **facts)
    models = (await server.client.get("/api/tags")).json()["models"]
    assert [model["name"] for model in models] == ["writer", "embedder"]
    datetime.fromisoformat(models[0]["modified_at"])
    running = (await server.client.get("/api/ps")).json()["models"]
    assert [model["context_length"] for model in running] == [256, 64]
    shown = (await server.post("/api/show", model="writer:latest")).json()
    assert shown["capabilities"] == ["completion", "tools"]
    assert shown["details"]["format"] == "gguf"
    assert shown["model_info"]["general.architecture"] == "llama"
    assert shown["model_info"]["general.parameter_count"] == 134_477_952
    assert shown["model_info"]["llama.context_length"] == 256
    assert "add_generation_prompt" in shown["template"]
    shown = (await server.post("/api/show", name="embedder")).json()
    assert shown["capabilities"] == ["embedding"]
    assert shown["model_info"]["bert.embedding_length"] == 8
    response = await server.post("/api/show", model="nobody")
    assert "model 'nobody' is not served" in refusal_of(response, 404)
    version = (await server.client.get("/api/version")).json()
    assert tuple(map(int, version["version"].split("."))) >= (0, 6, 4)
    assert version["tandem"] == __version__


async def test_the_default_tag_is_no_part_of_a_name(tokenizer_folder: Path) -> None:
    infos = [text_info(tokenizer_folder, name) for name in ("a", "a:latest", "b")]
    server = TextServer(tokenizer_folder, *infos)
    for asked, meant in (("a:latest", "a:latest"), ("a", "a"), ("b:latest", "b")):
        body = {"model": asked, "messages": MESSAGES, "options": {"num_predict": 1}}
        answer = (await server.post("/api/chat", **body, stream=False)).json()
        assert (answer["model"], server.last_request.model) == (asked, meant)
    response = await server.post("/api/chat", model="c:latest", messages=MESSAGES)
    assert "model 'c:latest' is not served" in refusal_of(response, 404)


async def test_embeddings(tokenizer_folder: Path) -> None:
    server = EmbeddingServer(tokenizer_folder)
    texts = ["the fox", "seven wizards"]
    response = await server.post("/api/embed", model="embedder", input=texts)
    answer = response.json()
    assert answer["embeddings"] == [vector(server.ids(text)) for text in texts]
    assert answer["prompt_eval_count"] == sum(len(server.ids(text)) for text in texts)
    assert answer["model"] == "embedder"
    body = {"input": "the fox", "dimensions": 3, "truncate": True, "keep_alive": "5m"}
    response = await server.post("/api/embed", **body)
    assert response.json()["embeddings"] == [vector(server.ids("the fox"), 3)]
    assert "X-Ignored-Fields" not in response.headers
    response = await server.post("/api/embeddings", prompt="the fox")
    assert response.json() == {"embedding": vector(server.ids("the fox"))}
    long = "wizard " * 65
    body = {"input": ["a", long], "truncate": False}
    assert "input[1] has" in refusal_of(await server.post("/api/embed", **body))
    cut = vector(server.ids(long)[:MOST_EMBEDDED])
    response = await server.post("/api/embed", input=["a", long])
    assert response.json()["embeddings"][1] == cut
    response = await server.post("/api/embeddings", prompt=long)
    assert response.json()["embedding"] == cut
    response = await server.post("/api/embed", input=["a", ""])
    assert "input[1]" in refusal_of(response)
    response = await server.post("/api/chat", messages=MESSAGES)
    assert "no text model is served" in refusal_of(response)


@pytest.fixture
async def client(server: TextServer) -> AsyncIterator[ollama.AsyncClient]:
    async with server.listening() as url:
        yield ollama.AsyncClient(host=url)


async def test_the_official_client(server: TextServer, client: ollama.AsyncClient) -> None:
    server.say("the fox jumps")
    response = await client.chat(model=MODEL, messages=MESSAGES)
    assert response["message"]["content"] == response.message.content == "the fox jumps"
    text = ""
    async for part in await client.chat(model=MODEL, messages=MESSAGES, stream=True):
        text += part["message"]["content"]
    assert text == "the fox jumps"
    generated = await client.generate(model=MODEL, prompt="Why is the sky blue?")
    assert (generated.response, generated.done_reason) == ("the fox jumps", "stop")
    assert [model.model for model in (await client.list()).models] == [MODEL]
    assert (await client.ps()).models[0].context_length == MAX_MODEL_LEN
    assert (await client.show(MODEL)).capabilities == ["completion", "tools"]
    assert (await client.chat(MODEL)).done_reason == "load"
    assert (await client.generate(MODEL)).done_reason == "load"
    with pytest.raises(ollama.ResponseError) as caught:
        await client.chat("does-not-yet-exist")
    assert caught.value.status_code == 404
    assert "does-not-yet-exist" in caught.value.error
    server.engine.failure = Failure(after=1)
    with pytest.raises(ollama.ResponseError, match="kv_cache_memory_gib"):
        async for _ in await client.chat(model=MODEL, messages=MESSAGES, stream=True):
            pass


async def test_the_document_names_the_models(server: TextServer) -> None:
    document = (await server.client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    assert schemas["OllamaChatRequest"]["properties"]["model"]["anyOf"][0]["enum"] == [MODEL, ""]
    answers = document["paths"]["/api/chat"]["post"]["responses"]
    assert {"200", "400", "401", "404", "413", "415", "429", "503"} <= answers.keys()
    assert "application/x-ndjson" in answers["200"]["content"]


async def test_requests_are_counted_by_their_route(server: TextServer) -> None:
    await server.post("/api/chat", messages=MESSAGES, options={"num_predict": 1})
    value = server.state.metrics.registry.get_sample_value
    labels = {"method": "POST", "route": "/api/chat", "status": "200"}
    assert value("tandem_http_requests_total", labels) == 1
    labels = {"model_name": MODEL, "finished_reason": "length"}
    assert value("tandem_request_success_total", labels) == 1
