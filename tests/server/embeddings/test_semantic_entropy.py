"""A chat's answers, compared by meaning: clusters and entropy written out, and over HTTP."""

import asyncio
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.contract.operations import EMBED
from server.embeddings.semantic_entropy import clusters_of, entropy_of
from server.operations import semantic_entropy
from tests.helpers.server.embedding_server import MAX_MODEL_LEN, EmbeddingServer
from tests.helpers.server.fake_embeddings import vector
from tests.helpers.server.fake_engine import Failure
from tests.helpers.server.fake_server import answer_of, error_of, until
from tests.helpers.server.text_server import TextServer

HI = [{"role": "user", "content": "hi"}]
ANSWERS = ["the lazy dog", "the fox", "the lazy dog", "", "seven wizards make toxic brew"]


def say(server: EmbeddingServer, answers: list[str]) -> None:
    replies = [server.tokenizer.encode(text, add_special_tokens=False).ids for text in answers]
    server.engine.reply = lambda request, index: replies[index]


async def ask(server: EmbeddingServer | TextServer, **body: Any) -> Any:
    fields = {"model": "writer", "messages": HI, "n": len(ANSWERS), "semantic_entropy": True}
    return await server.post("/v1/chat/completions", **fields | body)


def test_clusters_are_those_of_the_definition() -> None:
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    for _ in range(50):
        texts = [rng.choice("abcdefgh") for _ in range(rng.randrange(1, 12))]
        points = {text: np.array([rng.gauss(0, 1) for _ in range(2)], "<f4") for text in "abcdefgh"}
        points = {t: p for t, p in points.items() if t != "h"}  # that one has no embedding
        threshold = rng.choice([-0.5, 0.3, 0.9])
        firsts: list[str] = []
        expected = []
        for text in texts:
            for number, first in enumerate(firsts):
                a, b = points.get(first), points.get(text)
                near = a is not None and b is not None
                if near:
                    a, b = a.astype(float), b.astype(float)
                    near = a @ b / np.linalg.norm(a) / np.linalg.norm(b) >= threshold
                if text == first or near:
                    expected.append(number)
                    break
            else:
                expected.append(len(firsts))
                firsts.append(text)
        embeddings = {text: point.tobytes() for text, point in points.items()}
        assert clusters_of(texts, embeddings, threshold) == expected, seed
        shares = np.bincount(expected) / len(expected)
        assert entropy_of(expected) == pytest.approx(-(shares * np.log(shares)).sum()), seed


async def test_answers_are_put_together_by_their_embeddings(both: EmbeddingServer) -> None:
    say(both, ANSWERS)
    answer = (await ask(both, semantic_threshold=0.999)).json()
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert texts == ANSWERS
    told = answer["semantic_entropy"]
    vectors = {text: np.array(vector(both.ids(text)), "<f4").tobytes() for text in texts if text}
    clusters = clusters_of(texts, vectors, 0.999)
    assert told == {
        "entropy": pytest.approx(entropy_of(clusters)),
        "num_clusters": max(clusters) + 1,
        "clusters": clusters,
        "threshold": 0.999,
        "embedding_model": "embedder",
        "error": None,
    }
    assert clusters[0] == clusters[2] and told["num_clusters"] > 2
    (request,) = both.whole_texts
    assert len(request.inputs) == 3, "equal texts are embedded once, empty ones not at all"


async def test_answers_are_compared_in_a_thread(
    both: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    def compared(*args: Any) -> list[int]:
        threads.append(threading.get_ident())
        return clusters_of(*args)

    monkeypatch.setattr(semantic_entropy, "clusters_of", compared)
    say(both, ANSWERS)
    assert (await ask(both)).status_code == 200
    assert len(threads) == 1 and threads[0] != threading.get_ident()


async def test_nothing_is_embedded_unasked_or_for_empty_answers(both: EmbeddingServer) -> None:
    say(both, ["", "", "", "", ""])
    assert (await ask(both, semantic_entropy=False)).json()["semantic_entropy"] is None
    told = (await ask(both)).json()["semantic_entropy"]
    assert (told["entropy"], told["clusters"], told["threshold"]) == (0.0, [0] * 5, 0.7)
    assert both.whole_texts == []


async def test_answers_longer_than_the_embedding_model_reads_are_cut(both: EmbeddingServer) -> None:
    long = "the quick brown fox jumps over the lazy dog " * 20
    say(both, [long, long + " seven", "x", "y", "z"])
    told = (await ask(both)).json()["semantic_entropy"]
    assert told["clusters"][0] == told["clusters"][1]
    (request,) = both.whole_texts
    assert max(map(len, request.inputs)) == MAX_MODEL_LEN


async def test_written_answers_wait_for_room_at_the_embedding_model(
    both: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(both, ANSWERS)
    admission = both.state.admission
    others = admission.admit(EMBED, "embedder", 100_000)
    task = asyncio.create_task(ask(both))
    await until(lambda: admission.num_in_flight("writer") > 0)
    await until(lambda: bool(both.engine.requests))
    await asyncio.sleep(0.2)
    assert not task.done() and both.whole_texts == []
    others.release()
    assert (await task).json()["semantic_entropy"]["num_clusters"] > 1

    monkeypatch.setattr(semantic_entropy, "PATIENCE_S", 0.0)
    others = admission.admit(EMBED, "embedder", 100_000)
    answer = answer_of(await ask(both))
    assert [choice["message"]["content"] for choice in answer["choices"]] == ANSWERS
    told = answer["semantic_entropy"]
    assert (told["entropy"], told["num_clusters"], told["clusters"]) == (None, None, None)
    assert "the limit is" in told["error"] and told["embedding_model"] == "embedder"
    others.release()
    assert admission.num_in_flight() == 0


async def test_answers_survive_the_embedding_model(both: EmbeddingServer) -> None:
    say(both, ANSWERS)
    both.engine.hold()
    task = asyncio.create_task(ask(both))
    await until(lambda: len(both.engine.requests) == 1)
    both.engine.failure = Failure()
    both.engine.release()
    answer = (await task).json()
    assert [choice["message"]["content"] for choice in answer["choices"]] == ANSWERS
    told = answer["semantic_entropy"]
    assert (told["entropy"], told["error"]) == (None, both.engine.failure.value().message)


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("semantic_entropy", {"stream": True}),
        ("n", {"n": 1}),
        ("n", {"n": None}),
        ("semantic_threshold", {"semantic_entropy": None, "semantic_threshold": 0.5}),
        ("embedding_model", {"semantic_entropy": False, "embedding_model": "embedder"}),
        ("semantic_threshold", {"semantic_threshold": 1.5}),
        ("embedding_model", {"embedding_model": "nobody"}),
        ("embedding_model", {"embedding_model": "writer"}),
    ],
    ids=str,
)
async def test_what_cannot_be_compared_is_refused(
    both: EmbeddingServer, param: str, fields: dict[str, Any]
) -> None:
    error = error_of(await ask(both, **fields))
    assert error["param"] == param
    assert both.engine.requests == []


async def test_without_an_embedding_model_it_is_a_400_that_says_how(
    server_of_text: TextServer,
) -> None:
    response = await ask(server_of_text, model=None)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "embedding_model")
    assert "no embedding model is served here" in error["message"]
    assert "--model all-minilm-l6-v2" in error["message"]


@pytest.fixture
async def server_of_text(tokenizer_folder: Path) -> TextServer:
    return TextServer(tokenizer_folder)
