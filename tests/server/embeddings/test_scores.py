"""`/v1/rerank`, `/v1/score` and `/pooling`: what is taken, what is refused, what comes back."""

import random
import struct
from typing import Any

import numpy as np
import pytest

from engine.contract.operations import SCORE
from server.catalog import is_meant
from server.embeddings.scores import cosine
from server.protocol.prompts import MAX_PROMPTS
from tests.helpers.server.embedding_server import MAX_MODEL_LEN, EmbeddingServer
from tests.helpers.server.fake_embeddings import DIMENSIONS, reranker_info, vector
from tests.helpers.server.fake_server import answer_of, error_of

DOCUMENTS = ["the lazy dog", "seven wizards", "a toxic brew", "the fox"]
QUERY = "the fox"


def expected(server: EmbeddingServer, one: str, other: str) -> float:
    """Compute the score with numpy's own norm."""
    a, b = (np.array(vector(server.ids(text))) for text in (one, other))
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


async def answered(server: EmbeddingServer, path: str, **body: Any) -> dict[str, Any]:
    answer: dict[str, Any] = answer_of(await server.post(path, **body))
    return answer


async def refused(server: EmbeddingServer, path: str, **body: Any) -> dict[str, Any]:
    return error_of(await server.post(path, **body))


@pytest.mark.parametrize(
    "path", ["/v1/rerank", "/rerank", "/v2/rerank", "/reranking", "/v1/reranking"]
)
async def test_the_best_document_comes_first(server: EmbeddingServer, path: str) -> None:
    answer = await answered(server, path, query=QUERY, documents=DOCUMENTS)
    scores = [expected(server, QUERY, document) for document in DOCUMENTS]
    order = sorted(range(len(DOCUMENTS)), key=lambda index: -scores[index])
    assert [one["index"] for one in answer["results"]] == order
    assert order[0] == 3 and answer["results"][0]["relevance_score"] == pytest.approx(1)
    for one in answer["results"]:
        assert one["document"] == {"text": DOCUMENTS[one["index"]]}
        assert one["relevance_score"] == pytest.approx(scores[one["index"]], abs=1e-12)
    num_tokens = sum(len(server.ids(text)) for text in (QUERY, *DOCUMENTS))
    assert answer["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    assert answer["model"] == "embedder"
    assert answer["id"].startswith("rerank-")


async def test_only_the_best_without_their_texts(server: EmbeddingServer) -> None:
    body = {"query": QUERY, "documents": [{"text": text, "title": "x"} for text in DOCUMENTS]}
    whole = await answered(server, "/v1/rerank", **body)
    answer = await answered(server, "/v1/rerank", **body, top_n=2, return_documents=False)
    assert [one["document"] for one in answer["results"]] == [None, None]
    assert [one["index"] for one in answer["results"]] == [
        one["index"] for one in whole["results"][:2]
    ]
    for top_n in (0, 4, 99, None):
        assert len((await answered(server, "/v1/rerank", **body, top_n=top_n))["results"]) == 4


async def test_tei_s_form_has_tei_s_answer(server: EmbeddingServer) -> None:
    whole = await answered(server, "/v1/rerank", query=QUERY, documents=DOCUMENTS)
    body = {"query": QUERY, "texts": DOCUMENTS}
    answers = [
        (await server.post("/rerank", **body | more)).json()
        for more in ({}, {"return_text": True, "raw_scores": True, "truncate": True}, {"top_n": 2})
    ]
    for answer, has_text in zip(answers, (False, True, False), strict=True):
        for one, other in zip(answer, whole["results"], strict=False):
            text = {"text": other["document"]["text"]} if has_text else {}
            assert one == {"index": other["index"], "score": other["relevance_score"]} | text
    assert list(map(len, answers)) == [4, 4, 2]
    long = " ".join(["wizard"] * MAX_MODEL_LEN)
    error = await refused(server, "/rerank", query="a", texts=["b", long])
    assert (error["param"], "texts[1] has" in error["message"]) == ("texts", True)
    assert (await server.post("/rerank", query="a", texts=[long], truncate=True)).status_code == 200


async def test_equal_documents_keep_their_order(server: EmbeddingServer) -> None:
    answer = await answered(server, "/v1/rerank", query=QUERY, documents=[QUERY] * 5)
    assert [one["index"] for one in answer["results"]] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("path", ["/v1/score", "/score"])
async def test_one_text_with_each_of_the_others(server: EmbeddingServer, path: str) -> None:
    answer = await answered(server, path, text_1=QUERY, text_2=DOCUMENTS)
    assert [one["index"] for one in answer["data"]] == [0, 1, 2, 3]
    for one, text in zip(answer["data"], DOCUMENTS, strict=True):
        assert one["object"] == "score"
        assert one["score"] == pytest.approx(expected(server, QUERY, text), abs=1e-12)
    assert answer["object"] == "list"
    # The single text was embedded once.
    assert len(server.engine.requests[-1].inputs) == 5


async def test_pair_by_pair(server: EmbeddingServer) -> None:
    others = DOCUMENTS[::-1]
    answer = await answered(server, "/v1/score", text_1=DOCUMENTS, text_2=others)
    assert [one["score"] for one in answer["data"]] == pytest.approx(
        [expected(server, a, b) for a, b in zip(DOCUMENTS, others, strict=True)], abs=1e-12
    )
    answer = await answered(server, "/v1/score", text_1=QUERY, text_2=QUERY)
    assert answer["data"][0]["score"] == pytest.approx(1)


@pytest.mark.parametrize(
    "names", [("queries", "documents"), ("queries", "items"), ("data_1", "data_2")]
)
async def test_vllm_s_other_names_of_both_sides(
    server: EmbeddingServer, names: tuple[str, str]
) -> None:
    plain = await answered(server, "/score", text_1=QUERY, text_2=DOCUMENTS)
    answer = await answered(server, "/score", **dict(zip(names, (QUERY, DOCUMENTS), strict=True)))
    assert answer["data"] == plain["data"]
    error = await refused(server, "/score", **{names[0]: ["a", "b"], names[1]: ["c"]})
    assert f"{names[0]} has 2 texts and {names[1]} has 1" in error["message"]
    error = await refused(server, "/score", **{names[1]: "a"})
    assert (error["param"], "required" in error["message"]) == (names[0], True)


async def test_a_score_does_not_depend_on_what_else_is_asked(server: EmbeddingServer) -> None:
    alone = await answered(server, "/v1/score", text_1=QUERY, text_2="seven wizards")
    texts = [*(f"wizard {i}" for i in range(100)), "seven wizards"]
    together = await answered(server, "/v1/score", text_1=QUERY, text_2=texts)
    assert together["data"][-1]["score"] == alone["data"][0]["score"]


async def test_pooling_gives_embeddings(server: EmbeddingServer) -> None:
    answer = await answered(server, "/pooling", input=["the fox", "seven wizards"])
    assert [one["data"] for one in answer["data"]] == [
        vector(server.ids("the fox")),
        vector(server.ids("seven wizards")),
    ]
    assert {one["object"] for one in answer["data"]} == {"pooling"}
    assert answer.keys() == {"id", "object", "created", "model", "data", "usage"}
    short = await answered(server, "/pooling", input=[5, 6], task="embed", dimensions=3)
    assert short["data"][0]["data"] == vector([5, 6], 3)


@pytest.mark.parametrize(
    ("path", "body", "param", "said"),
    [
        ("/v1/rerank", {"query": "a"}, "documents", "required"),
        ("/v1/rerank", {"documents": ["a"]}, "query", "required"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "texts": ["b"]}, "texts", "one of them"),
        ("/rerank", {"query": "a", "texts": []}, "texts", "at least 1"),
        ("/rerank", {"query": "a", "documents": ["b"], "truncate": True}, "truncate", "texts"),
        ("/score", {"text_1": "a", "text_2": "b", "items": "c"}, "items", "one of them"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents", "at least 1"),
        ("/v1/rerank", {"query": "", "documents": ["a"]}, "query", "at least 1"),
        ("/v1/rerank", {"query": "a", "documents": ["b", ""]}, "documents[1]", "at least 1"),
        ("/v1/rerank", {"query": "a", "documents": [[1]]}, "documents[0]", "a valid string"),
        ("/v1/rerank", {"query": "a", "documents": "b"}, "documents", "an array"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, "top_n", "0"),
        ("/v1/rerank", {"query": "a", "documents": ["b"] * 2049}, "documents", str(MAX_PROMPTS)),
        (
            "/v1/rerank",
            {"query": "a", "documents": ["b"], "max_chunks_per_doc": 3},
            "max_chunks_per_doc",
            "not supported",
        ),
        (
            "/v1/rerank",
            {"query": "a", "documents": ["b"], "use_activation": False},
            "use_activation",
            "not supported by embedding models",
        ),
        (
            "/v1/score",
            {"text_1": "a", "text_2": "b", "instruction": "c"},
            "instruction",
            "not supported by embedding models",
        ),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a"]}, "text_1", "text_1 has 2 texts"),
        ("/v1/score", {"text_1": "a"}, "text_2", "required"),
        ("/v1/score", {"text_1": "a", "text_2": []}, "text_2", "at least 1"),
        ("/pooling", {"input": "a", "task": "classify"}, "task", "not supported"),
        ("/pooling", {"input": "a", "dimensions": DIMENSIONS + 1}, "dimensions", "ask for 1 to"),
    ],
)
async def test_refusals(
    server: EmbeddingServer, path: str, body: dict[str, Any], param: str, said: str
) -> None:
    error = await refused(server, path, **body)
    assert error["param"] == param
    assert said in error["message"]
    assert server.engine.requests == []


async def test_what_is_too_long_is_named_by_its_field(server: EmbeddingServer) -> None:
    long = " ".join(["wizard"] * MAX_MODEL_LEN)
    body = {"query": "a", "documents": ["b", long]}
    error = await refused(server, "/v1/rerank", **body)
    assert error["code"] == "context_length_exceeded"
    assert (error["param"], "documents[1] has" in error["message"]) == ("documents", True)
    error = await refused(server, "/v1/score", text_1=long, text_2="b")
    assert (error["param"], "text_1 has" in error["message"]) == ("text_1", True)
    error = await refused(server, "/v1/rerank", query="a", documents=["b", "x" * 10_000])
    assert "documents[1] has 10000 characters" in error["message"]


async def test_a_request_without_a_model_is_for_the_reranker(server: EmbeddingServer) -> None:
    engine = server.engine
    assert not is_meant(engine, SCORE, None)
    engine.serve(reranker_info())
    assert is_meant(engine, SCORE, None) and is_meant(engine, SCORE, "ranker")
    assert not is_meant(engine, SCORE, "embedder") and not is_meant(engine, SCORE, "unknown")
    await answered(server, "/v1/score", model="embedder", text_1="a", text_2="b")


async def test_other_kinds_of_model_are_refused(both: EmbeddingServer) -> None:
    error = await refused(both, "/v1/rerank", model="writer", query="a", documents=["b"])
    assert "model writer writes text" in error["message"]


async def test_places_are_taken_for_all_texts_and_given_back(server: EmbeddingServer) -> None:
    admission = server.state.admission
    server.engine.hold()
    held = await server.in_flight("/v1/rerank", query=QUERY, documents=DOCUMENTS)
    assert admission.num_in_flight("embedder") == 5
    assert (await server.client.get("/load")).json() == {"server_load": 1}
    server.engine.release()
    assert (await held).status_code == 200
    assert admission.num_in_flight() == 0
    assert (await server.client.get("/load")).json() == {"server_load": 0}


def test_the_cosine_of_random_vectors() -> None:
    rng = random.Random(5)
    for num in (1, 7, 384, 1000):
        a, b = ([rng.gauss(0, 1) for _ in range(num)] for _ in range(2))
        packed = [struct.pack(f"<{num}f", *numbers) for numbers in (a, b)]
        x, y = (np.frombuffer(data, np.float32).astype(np.longdouble) for data in packed)
        exact = float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))
        assert cosine(*packed) == pytest.approx(exact, abs=1e-14)
        assert cosine(packed[0], bytes(4 * num)) == 0
