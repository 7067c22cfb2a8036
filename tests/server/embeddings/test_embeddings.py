"""`POST /v1/embeddings`: what is taken, what is refused and how, what comes back."""

import asyncio
import base64
import random
import struct
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from engine.contract.status import Phase
from engine.errors import QueueFull
from server.embeddings.convert import MAX_CHARS_PER_TOKEN
from server.protocol.prompts import MAX_PROMPTS
from tests.helpers.server.embedding_server import MAX_MODEL_LEN, EmbeddingServer
from tests.helpers.server.fake_embeddings import DIMENSIONS, vector
from tests.helpers.server.fake_engine import Failure
from tests.helpers.server.fake_server import answer_of, error_of, until
from tests.helpers.server.text_server import BOS


async def test_one_text(server: EmbeddingServer) -> None:
    response = await server.embed()
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    ids = server.ids("the fox")
    assert ids[0] == BOS
    assert response.json() == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": vector(ids)}],
        "model": "embedder",
        "pooling": "mean",
        "usage": {"prompt_tokens": len(ids), "total_tokens": len(ids)},
    }


@pytest.mark.parametrize(
    "given",
    [["the fox", "seven wizards", "the fox"], [[5, 6], [7], [8, 9, 10]], [5, 6, 7], "fox"],
    ids=["texts", "lists of ids", "ids", "text"],
)
async def test_all_shapes_of_input(server: EmbeddingServer, given: Any) -> None:
    items = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
    expected = [server.ids(item) if isinstance(item, str) else item for item in items]
    answer = (await server.embed(input=given)).json()
    assert [one["index"] for one in answer["data"]] == list(range(len(items)))
    assert [one["embedding"] for one in answer["data"]] == [vector(ids) for ids in expected]
    assert answer["usage"]["prompt_tokens"] == sum(map(len, expected))
    assert server.engine.requests[-1].inputs == expected


async def test_base64_holds_the_same_numbers(server: EmbeddingServer) -> None:
    plain = (await server.embed(encoding_format="float")).json()["data"][0]["embedding"]
    coded = (await server.embed(encoding_format="base64")).json()["data"][0]["embedding"]
    data = base64.b64decode(coded, validate=True)
    assert list(struct.unpack(f"<{DIMENSIONS}f", data)) == plain


async def test_dimensions_go_to_the_engine(server: EmbeddingServer) -> None:
    answer = (await server.embed(dimensions=3)).json()
    assert answer["data"][0]["embedding"] == vector(server.ids("the fox"), 3)
    error = await server.refused(dimensions=DIMENSIONS + 1)
    assert error["param"] == "dimensions"
    assert f"embeddings of embedder have {DIMENSIONS} numbers" in error["message"]


async def test_as_many_texts_as_openai_takes(server: EmbeddingServer) -> None:
    texts = [f"fox {i % 50}" for i in range(MAX_PROMPTS)]
    answer = (await server.embed(input=texts)).json()
    assert [one["embedding"] for one in answer["data"][::97]] == [
        vector(server.ids(text)) for text in texts[::97]
    ]
    assert len(answer["data"]) == MAX_PROMPTS
    error = await server.refused(input=["a"] * (MAX_PROMPTS + 1))
    assert error["param"] == "input"
    assert (
        error["message"]
        == f"input: has {MAX_PROMPTS + 1} texts; at most {MAX_PROMPTS} can be sent at once"
    )


@pytest.mark.parametrize(
    "given",
    ["", [], [""], ["a", ""], [[]], [[1], []], [1.5], ["a", 1], [["a"]], {"a": 1}, None, [[True]]],
)
async def test_inputs_that_are_none(server: EmbeddingServer, given: Any) -> None:
    error = await server.refused(input=given)
    assert (error["param"], error["type"]) == ("input", "invalid_request_error")
    assert server.engine.requests == []


async def test_a_missing_input(server: EmbeddingServer) -> None:
    error = error_of(await server.post("/v1/embeddings"))
    assert error["param"] == "input"


@pytest.mark.parametrize("thread", [False, True], ids=["short", "in a thread"])
async def test_a_text_that_is_too_long_is_named(server: EmbeddingServer, thread: bool) -> None:
    long = "fox " * 70
    count = len(server.ids(long))
    assert count > MAX_MODEL_LEN
    filler = ["wizards " * 8] * 2000 if thread else ["fox"]  # enough to be tokenised in threads
    error = await server.refused(input=[*filler[:1], long, *filler[1:]])
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")
    about = "at least " if thread else ""
    assert f"maximum context length is {MAX_MODEL_LEN} tokens" in error["message"]
    assert f"input[1] has {about}{count} tokens" in error["message"]
    assert server.engine.requests == []


async def test_texts_are_cut_where_that_is_asked_for(server: EmbeddingServer) -> None:
    long = "fox " * 70
    ids = server.ids(long)
    for keep, most in ((-1, MAX_MODEL_LEN), (MAX_MODEL_LEN, MAX_MODEL_LEN), (8, 8), (2, 2)):
        answer = (await server.embed(input=["fox", long], truncate_prompt_tokens=keep)).json()
        inputs = server.engine.requests[-1].inputs
        assert inputs == [server.ids("fox")[:most], ids[:most]]
        assert answer["usage"]["prompt_tokens"] == sum(map(len, inputs))
    await server.embed(input=[[5] * 100, [6]], truncate_prompt_tokens=3)
    assert server.engine.requests[-1].inputs == [[5, 5, 5], [6]]
    for path, body in (
        ("/v1/rerank", {"query": long, "documents": [long, "fox"]}),
        ("/v1/score", {"text_1": long, "text_2": long}),
    ):
        answer_of(await server.post(path, **body | {"truncate_prompt_tokens": -1}))
        assert server.engine.requests[-1].inputs[0] == ids[:MAX_MODEL_LEN]
    for keep, said in (
        (0, "it can be 1 to 64"),
        (MAX_MODEL_LEN + 1, "it can be 1 to 64"),
        (1, "must be at least 2"),
        (-2, "must be"),
    ):
        error = await server.refused(truncate_prompt_tokens=keep)
        assert error["param"] == "truncate_prompt_tokens"
        assert error["param"] == "truncate_prompt_tokens"
        assert said in error["message"]


async def test_the_only_text_has_no_number(server: EmbeddingServer) -> None:
    error = await server.refused(input="fox " * 70)
    assert f"However, input has {len(server.ids('fox ' * 70))} tokens" in error["message"]


async def test_token_ids_are_bounded(server: EmbeddingServer) -> None:
    error = await server.refused(input=[[1], [2] * (MAX_MODEL_LEN + 1)])
    assert f"input[1] has {MAX_MODEL_LEN + 1} tokens" in error["message"]
    error = await server.refused(input=[[1], [420]])
    assert "token id 420; this model's token ids are 0 to 419" in error["message"]
    assert (await server.embed(input=[2] * MAX_MODEL_LEN)).status_code == 200


async def test_characters_are_bounded_before_anything_is_tokenised(
    server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = MAX_CHARS_PER_TOKEN * MAX_MODEL_LEN
    monkeypatch.setattr(type(server.state.texts), "get", lambda *args: pytest.fail("tokenised"))
    error = await server.refused(input=["a", "x" * (most + 1)])
    assert f"input[1] has {most + 1} characters" in error["message"]
    assert f" and {most} characters" in error["message"]


async def test_what_is_refused_and_what_is_tolerated(server: EmbeddingServer) -> None:
    assert (await server.refused(encoding_format="int8"))["param"] == "encoding_format"
    assert (await server.refused(dimensions=0))["param"] == "dimensions"
    error = await server.refused(messages=[])
    assert (error["param"], error["code"]) == ("messages", "unsupported_feature")
    response = await server.embed(user="me", encoding_format=None, dimensions=None, mood="odd")
    assert response.status_code == 200
    assert response.headers["x-ignored-fields"] == "mood"


async def test_a_text_model_that_restarts_may_embed_again(both: EmbeddingServer) -> None:
    for phase in (Phase.RESTARTING, Phase.WARMING_UP):
        both.engine.set_status("writer", phase)
        error = await both.refused(503, model="writer")
        assert error["code"] == "model_not_ready"


async def test_models_of_another_kind_say_what_to_do(both: EmbeddingServer) -> None:
    error = await both.refused(model="writer")
    assert error["param"] == "model"
    assert "writer writes text; send requests for it to /v1/chat/completions" in error["message"]
    assert "use one of: embedder" in error["message"]
    messages = [{"role": "user", "content": "hi"}]
    response = await both.post("/v1/chat/completions", model="embedder", messages=messages)
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert "model embedder makes embeddings; send requests for it to /v1/embeddings" in message
    # Each route's only model needs no name.
    assert (await both.embed()).status_code == 200
    answer_of(await both.post("/v1/completions", prompt="a", max_tokens=1))
    assert (await both.refused(404, model="nope"))["code"] == "model_not_found"


async def test_where_no_embedding_model_is_served(tokenizer_folder: Path) -> None:
    server = EmbeddingServer(tokenizer_folder, with_text=True)
    server.engine.forget("embedder")
    error = await server.refused(model="writer")
    assert "no embedding model is served here" in error["message"]
    assert "--model all-minilm-l6-v2" in error["message"]


async def test_the_card(both: EmbeddingServer) -> None:
    cards = (await both.client.get("/v1/models")).json()["data"]
    assert [card["id"] for card in cards] == ["writer", "embedder"]
    assert cards[1] == {
        "id": "embedder",
        "object": "model",
        "created": 1_700_000_000,
        "max_model_len": MAX_MODEL_LEN,
        "root": "embedder",
        "owned_by": "tandem",
        "parent": None,
        "architecture": "BertModel",
        "dimensions": DIMENSIONS,
        "pooling": "mean",
        "normalized": True,
        "max_inputs": MAX_PROMPTS,
    }
    assert (await both.client.get("/v1/models/embedder")).json() == cards[1]


async def test_the_document_knows_the_models_limits(both: EmbeddingServer) -> None:
    document = (await both.client.get("/openapi.json")).json()
    fields = document["components"]["schemas"]["EmbeddingsRequest"]["properties"]
    assert "'enum': ['embedder', '']" in str(fields["model"])
    assert f"'maximum': {DIMENSIONS}" in str(fields["dimensions"])
    assert "'maximum': 419" in str(fields["input"])
    answer = document["paths"]["/v1/embeddings"]["post"]["responses"]["200"]
    assert "EmbeddingsAnswer" in str(answer)


async def test_a_failure_of_one_input_fails_the_request(server: EmbeddingServer) -> None:
    server.engine.failure = Failure(code="request_failed", message="broken")
    response = await server.embed(input=["a", "b"])
    assert response.status_code == 500
    assert server.value("inputs_total", outcome="completed") == 1
    assert server.value("inputs_total", outcome="failed") == 1


async def test_a_full_queue_is_a_429(tokenizer_folder: Path) -> None:
    server = EmbeddingServer(tokenizer_folder, max_queued_requests=0, engine={"max_num_seqs": 4})
    server.engine.hold()
    asked = [["a"], ["b"], ["c"], ["d"]]
    first = [asyncio.create_task(server.embed(input=given)) for given in asked[:3]]
    await until(lambda: len(server.engine.live) == 3)
    error = await server.refused(429, input=["d", "e"])
    assert error["code"] == "queue_full"
    assert "3 inputs are running or waiting and 2 more were asked for" in error["message"]
    last = asyncio.create_task(server.embed(input=asked[3]))
    await until(lambda: len(server.engine.live) == 4)
    server.engine.release()
    assert [(await task).status_code for task in (*first, last)] == [200] * 4
    server.engine.submit_error = QueueFull("the engine's own limit")
    assert (await server.embed()).status_code == 429


async def test_many_inputs_take_the_places_of_nobody_else(tokenizer_folder: Path) -> None:
    server = EmbeddingServer(tokenizer_folder, max_queued_requests=8, engine={"max_num_seqs": 2})
    server.engine.hold()
    texts = ["a"] * random.randint(200, MAX_PROMPTS)
    many = asyncio.create_task(server.embed(input=texts))
    await until(lambda: len(server.engine.live) == 1)
    others = [asyncio.create_task(server.embed(input=str(number))) for number in range(6)]
    await until(lambda: len(server.engine.live) == 7)
    await server.refused(429)
    server.engine.release()
    assert [(await task).status_code for task in others] == [200] * 6
    assert len((await many).json()["data"]) == len(texts)
    await until(lambda: server.state.admission.num_in_flight() == 0)


async def test_metrics_follow_requests_and_steps(server: EmbeddingServer) -> None:
    usages = [
        (await server.embed(input=given)).json()["usage"]["prompt_tokens"]
        for given in ("the fox", ["a", "b", "seven wizards"])
    ]
    assert server.value("inputs_total", outcome="completed") == 4
    assert server.value("request_latency_seconds_count") == 2
    assert server.value("queue_seconds_sum") == 0.5
    assert server.value("steps_total") == 2
    assert server.value("step_inputs_sum") == 4
    assert server.value("step_tokens_sum") == sum(usages)
    assert server.value("step_seconds_sum") == 1.0
    assert server.value("num_running") == 0
    await server.refused(input="fox " * 70)
    assert server.value("inputs_total", outcome="failed") == 0


async def test_the_openai_client(server: EmbeddingServer, client: AsyncOpenAI) -> None:
    texts = ["the fox", "seven wizards"]
    # Left alone it asks for base64 and decodes it.
    answer = await client.embeddings.create(model="embedder", input=texts, user="me")
    assert [one.embedding for one in answer.data] == [vector(server.ids(t)) for t in texts]
    plain = await client.embeddings.create(
        model="embedder", input=[[3, 4]], encoding_format="float", dimensions=2
    )
    assert plain.data[0].embedding == vector([3, 4], 2)
    assert plain.usage.prompt_tokens == plain.usage.total_tokens == 2
    with pytest.raises(openai.BadRequestError) as caught:
        await client.embeddings.create(model="embedder", input="fox " * 70)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")


async def test_a_priority_needs_its_policy(server: EmbeddingServer, tokenizer_folder: Path) -> None:
    error = await server.refused(priority=1)
    assert (error["param"], error["code"]) == ("priority", "unsupported_feature")
    assert "--scheduling-policy priority" in error["message"]
    assert (await server.embed(priority=0)).status_code == 200
    assert (await server.refused(priority="high"))["param"] == "priority"
    other = EmbeddingServer(tokenizer_folder, engine={"scheduling_policy": "priority"})
    response = await other.embed(priority=-3)
    assert response.status_code == 200
    assert "X-Ignored-Fields" not in response.headers
    assert other.engine.requests[0].priority == -3
