"""`/v1/rerank` and `/v1/score` by rerankers, from the request to the weights, against
transformers."""

import math
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.contract.kinds import imported
from engine.contract.settings import EngineConfig
from engine.weights.recognition import kind_of_checkpoint
from engine.weights.source import Checkpoint
from server.app import create_app
from server.settings import Settings
from tests.helpers.host import Host
from tests.helpers.models.tiny_rerankers import (
    FAMILIES,
    LONGEST,
    Reference,
    make_reranker,
    random_text,
)
from tests.helpers.worker.in_process_client import InProcessEngineClient

MODELS = {name: (name, "ForSequenceClassification", "auto") for name in FAMILIES} | {
    "yes_no_tied": ("qwen3", "ForCausalLM", "reranker"),
    "yes_no_untied": ("qwen3_untied", "ForCausalLM", "reranker"),
}
HAS_PROMPT = [name for name, (family, *_) in MODELS.items() if family.startswith("qwen3")]


class Server:
    """An app over one reranker with its real engine."""

    def __init__(self, folder: Path, kind: Any = "auto", **settings: Any) -> None:
        config = EngineConfig(device="cpu", num_threads=1, kind=kind, dtype="float32", **settings)
        checkpoint = Checkpoint("folder", folder, "m")
        found = kind_of_checkpoint(checkpoint, kind)
        assert found.name == "reranker"
        engine, info = imported(found.loader)(checkpoint, "m", config.of(found.settings), Host())
        self.info = info
        self.engine = InProcessEngineClient(engine, info, config)
        self.app = create_app(Settings(), self.engine)
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=True)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")

    async def post(self, path: str, **body: Any) -> Any:
        response = await self.client.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    async def scores(self, first: Any, second: Any, **more: Any) -> list[float]:
        answer = await self.post("/v1/score", text_1=first, text_2=second, **more)
        assert [one["index"] for one in answer["data"]] == list(range(len(answer["data"])))
        return [one["score"] for one in answer["data"]]

    async def refused(self, path: str, **body: Any) -> dict[str, Any]:
        response = await self.client.post(path, json=body)
        assert response.status_code == 400, response.text
        error: dict[str, Any] = response.json()["error"]
        return error

    async def aclose(self) -> None:
        await self.app.state.tandem.texts.aclose()
        await self.client.aclose()
        await self.engine.stop(5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each model; the seed is drawn once."""
    seed = random.randrange(1 << 16)
    return {
        name: make_reranker(tmp_path_factory.mktemp(name), family, seed=seed, head=head)
        for name, (family, head, _) in MODELS.items()
    }


@pytest.fixture
async def server(folders: dict[str, Path], model: str) -> AsyncIterator[Server]:
    server = Server(folders[model], MODELS[model][2])
    await server.engine.start()
    yield server
    await server.aclose()


@pytest.fixture
def rng() -> random.Random:
    return random.Random(random.randrange(1 << 30))


def sigmoid(number: float) -> float:
    return 1 / (1 + math.exp(-number))


@pytest.mark.parametrize("model", MODELS)
async def test_scores_are_those_of_transformers(
    server: Server, model: str, folders: dict[str, Path], rng: random.Random
) -> None:
    reference = Reference(folders[model])
    query = random_text(rng, 5)
    documents = [random_text(rng, rng.randint(1, 12)) for _ in range(6)]
    numbers = [reference.score(query, document) for document in documents]
    found = await server.scores(query, documents, use_activation=False)
    assert found == pytest.approx(numbers, abs=1e-4)
    answer = await server.post("/v1/rerank", query=query, documents=documents, top_n=5)
    order = sorted(range(6), key=lambda index: -found[index])[:5]
    assert [one["index"] for one in answer["results"]] == order
    for one in answer["results"]:
        assert one["relevance_score"] == pytest.approx(sigmoid(numbers[one["index"]]), abs=1e-4)
        assert one["document"] == {"text": documents[one["index"]]}
    inputs = [reference.inputs(query, document) for document in documents]
    num_tokens = sum(len(one["input_ids"]) for one in inputs)
    assert answer["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    pairs = [(random_text(rng, 4), document) for document in documents]
    numbers = [reference.score(*pair) for pair in pairs]
    found = await server.scores([one for one, _ in pairs], documents)
    assert found == pytest.approx([sigmoid(one) for one in numbers], abs=1e-4)


@pytest.mark.parametrize("model", MODELS)
async def test_pairs_are_cut_as_tokenizers_cut_them(
    server: Server, model: str, folders: dict[str, Path], rng: random.Random
) -> None:
    reference = Reference(folders[model])
    least = len(reference.inputs("", "")["input_ids"])
    for _ in range(4):
        query, document = (random_text(rng, rng.randint(1, 40)) for _ in "qd")
        keep = least + rng.randint(1, 30) if least > LONGEST else rng.randint(5, LONGEST)
        number = reference.score(query, document, keep=keep)
        [found] = await server.scores(
            query, document, truncate_prompt_tokens=keep, use_activation=False
        )
        assert found == pytest.approx(number, abs=1e-4), (query, document, keep)
    long = random_text(rng, 900)
    body = {"query": "x", "texts": [long, "y"], "raw_scores": True}
    [one, other] = await server.post("/rerank", **body, truncate=True)
    kept = {one["index"]: one["score"], other["index"]: other["score"]}
    number = reference.score("x", long, keep=server.info.max_model_len)
    assert kept[0] == pytest.approx(number, abs=1e-4)
    error = await server.refused("/rerank", **body)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "texts")
    error = await server.refused("/score", text_1="x", text_2="y", truncate_prompt_tokens=3)
    assert error["param"] == "truncate_prompt_tokens"


@pytest.mark.parametrize("model", ["bert", "yes_no_tied"])
async def test_a_pair_that_is_too_long_is_named(server: Server, rng: random.Random) -> None:
    half = random_text(rng, server.info.max_model_len * 2 // 3)
    error = await server.refused("/v1/score", queries=["x", half], documents=["y", half])
    assert error["code"] == "context_length_exceeded"
    assert error["param"] in ("queries", "documents")
    error = await server.refused("/v1/rerank", query="x" * 10, documents=["y", "z" * 100_000])
    assert "documents[1] has 100000 characters" in error["message"]


@pytest.mark.parametrize("model", HAS_PROMPT[-1:])
async def test_an_instruction_is_read(
    server: Server, model: str, folders: dict[str, Path], rng: random.Random
) -> None:
    query, document, task = (random_text(rng, 6) for _ in "qdt")
    found = await server.scores(query, document, instruction=task, use_activation=False)
    number = Reference(folders[model]).score(query, document, task=task)
    assert found == pytest.approx([number], abs=1e-4)


@pytest.mark.parametrize("model", ["roberta"])
async def test_what_the_server_says_of_a_reranker(server: Server) -> None:
    card = (await server.client.get("/v1/models")).json()["data"][0]
    assert (card["id"], card["max_model_len"], card["activation"]) == ("m", LONGEST, "sigmoid")
    assert card["architecture"] == "RobertaForSequenceClassification"
    error = await server.refused("/v1/embeddings", model="m", input="x")
    assert "m scores pairs of texts" in error["message"]
    error = await server.refused("/v1/rerank", query="a", documents=["b"], instruction="c")
    assert error["param"] == "instruction"
    await server.scores("a", ["b", "c", "d"])
    value = server.app.state.tandem.metrics.registry.get_sample_value
    labels = {"model_name": "m", "outcome": "completed"}
    assert value("tandem_reranker_inputs_total", labels) == 3
    schemas = (await server.client.get("/openapi.json")).json()["components"]["schemas"]
    assert "m" in str(schemas["RerankRequest"]["properties"]["model"])
