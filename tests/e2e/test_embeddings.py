"""Embedding models in a real server, beside a text model, asked by the official client."""

import json

import httpx
import numpy as np
import openai
import pytest

pytestmark = pytest.mark.e2e
MINILM = "all-minilm-l6-v2"


@pytest.fixture(scope="module")
def text_server(start_shared_server, minilm_checkpoint, tiny_llama):
    """A server of one random text model, which writes as `tiny` and only embeds as `embedder`."""
    folder = str(tiny_llama())
    tiny = {"ref": folder, "name": "tiny", "settings": {"kind": "auto"}}
    models = ("--model", json.dumps(tiny), "--model", f"embedder={folder}")
    loading = ("--enable-runtime-loading", "--loadable-model", MINILM)
    return start_shared_server(*models, "--kind", "embedding", *loading)


@pytest.fixture(scope="module")
def server(text_server):
    """The same server, which has loaded MiniLM, too."""
    loaded = httpx.post(f"{text_server.url}/models/load", json={"model": MINILM}, timeout=120)
    assert loaded.status_code == 200, loaded.text
    return text_server


def test_a_text_model_embeds_with_the_weights_that_it_has(text_server):
    texts = ["hello", "a text of some more words", "hi"]
    answers = [
        httpx.post(
            f"{text_server.url}/v1/embeddings", json={"model": model, "input": texts}, timeout=60
        ).json()
        for model in ("tiny", "embedder")
    ]
    assert [answer["pooling"] for answer in answers] == ["last", "last"]
    own, alone = ([one["embedding"] for one in answer["data"]] for answer in answers)
    np.testing.assert_allclose(own, alone, atol=1e-5)
    assert np.shape(alone) == (3, 64)
    assert np.linalg.norm(alone, axis=1) == pytest.approx(1, abs=1e-2)
    unnamed = httpx.post(
        f"{text_server.url}/v1/embeddings", json={"input": "hi"}, timeout=60
    ).json()
    assert unnamed["model"] == "embedder"
    said = httpx.post(
        f"{text_server.url}/v1/completions", json={"prompt": "a", "max_tokens": 2}, timeout=60
    )
    assert said.json()["usage"]["completion_tokens"] == 2
    body = {"prompt": "a", "model": "embedder"}
    refused = httpx.post(f"{text_server.url}/v1/completions", json=body, timeout=60)
    assert refused.status_code == 400
    assert "model embedder makes embeddings" in refused.json()["error"]["message"]
    done = [
        text_server.metric("tandem_embedding_inputs_total", outcome="completed", model_name=model)
        for model in ("tiny", "embedder")
    ]
    assert done == [3, 4]


def embed(client, *texts, **options):
    answer = client.embeddings.create(model=MINILM, input=list(texts), **options)
    assert [one.index for one in answer.data] == list(range(len(texts)))
    return np.array([one.embedding for one in answer.data], dtype=np.float32)


def test_what_means_the_same_lies_close(client):
    meal, food, baby = embed(
        client, "Someone is having a meal.", "A man is eating food.", "The girl carries a baby."
    )
    assert meal.shape == (384,)
    assert np.linalg.norm(meal) == pytest.approx(1, abs=1e-5)
    assert meal @ food > 0.5 > meal @ baby


def test_an_embedding_is_the_same_in_any_company_and_format(client):
    alone = embed(client, "The sky is blue.")
    texts = [f"sentence number {i} " * (i % 20) + "ends." for i in range(200)]
    together = embed(client, *texts[:100], "The sky is blue.", *texts[100:])
    assert np.array_equal(together[100], alone[0])
    assert np.array_equal(embed(client, "The sky is blue.", encoding_format="float"), alone)
    short = embed(client, "The sky is blue.", dimensions=10)[0]
    assert short == pytest.approx(alone[0, :10] / np.linalg.norm(alone[0, :10]), abs=1e-6)


def test_documents_are_ranked_by_what_they_mean(server):
    documents = ["The girl carries a baby.", "A man is eating food."]
    body = {"model": MINILM, "query": "Someone is having a meal.", "documents": documents}
    ranked = httpx.post(f"{server.url}/v1/rerank", json=body, timeout=60).json()["results"]
    assert [one["index"] for one in ranked] == [1, 0]
    body = {"model": MINILM, "text_1": body["query"], "text_2": documents}
    scores = [
        one["score"]
        for one in httpx.post(f"{server.url}/v1/score", json=body, timeout=60).json()["data"]
    ]
    assert scores == [ranked[1]["relevance_score"], ranked[0]["relevance_score"]]


def test_claims_are_compared_with_a_passage(server):
    passage = "The bridge was opened in 1931. It is 412 metres long and closed to lorries."
    claims = (
        "The bridge is 412 metres long.",
        "The bridge is 540 metres long.",
        "Tourists love to eat ice cream nearby.",
    )
    body = {"model": MINILM, "answer": " ".join(claims), "passages": [passage]}
    found = httpx.post(f"{server.url}/v1/groundedness", json=body, timeout=60).json()["sentences"]
    assert [one["risk"] for one in found] == [None, "intrinsic", "extrinsic"]
    assert found[1]["conflicts"] == ["540"]


def test_each_model_has_its_routes(client):
    with pytest.raises(openai.BadRequestError, match="send requests for it to /v1/embeddings"):
        client.chat.completions.create(
            model=MINILM, messages=[{"role": "user", "content": "hi"}], max_tokens=1
        )
    with pytest.raises(openai.BadRequestError) as caught:
        embed(client, "short", "word " * 400)
    assert caught.value.code == "context_length_exceeded"
    assert "input[1] has 402 tokens" in caught.value.message


def test_a_client_that_leaves_is_not_served_to_the_end(server, client):
    texts = ["The quick brown fox jumps over the lazy dog, again and again. " * 8] * 1500
    gauges = ("embedding_num_running", "embedding_num_waiting")
    steps = "tandem_embedding_step_inputs_sum"
    before = server.metric(steps)
    server.abandon(
        "/v1/embeddings",
        lambda: server.metric(steps) > before,
        json={"model": MINILM, "input": texts},
    )
    server.wait_idle(gauges)
    assert server.metric(steps) - before < 1500
    embed(client, "next")
    cancelled = server.metric("tandem_embedding_inputs_total", outcome="cancelled")
    done = server.metric("tandem_embedding_inputs_total", outcome="completed")
    assert cancelled > 0 and cancelled + done >= 1500
