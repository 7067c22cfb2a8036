"""A server as routers of other servers drive it: loads, tokens and a reset of the prefix cache."""

import random

import httpx
import pytest

pytestmark = pytest.mark.e2e


@pytest.fixture(params=[1, 2], ids=["one", "two replicas"])
def server(request, start_server, tiny_llama):
    return start_server(
        *("--model", f"m={tiny_llama(seed=11)}", "--replicas", str(request.param)),
        *("--dtype", "float32", "--device", "cpu", "--kv-cache-memory-gib", "0.05"),
        "--enable-runtime-loading",
    )


def post(server, path, **body):
    response = httpx.post(f"{server.url}{path}", json=body, timeout=120)
    assert response.status_code == 200, response.text
    return response


def test_a_reset_forgets_prompts_and_the_numbers_agree(server):
    rng = random.Random()
    prompt = [rng.randrange(3, 250) for _ in range(100)]
    body = {"prompt": prompt, "max_tokens": 8, "temperature": 0, "logprobs": 2}

    def ask():
        answer = post(server, "/v1/completions", **body).json()
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        return cached, answer["choices"][0]["logprobs"]

    [rendered] = post(server, "/v1/completions/render", **body).json()
    assert rendered["token_ids"] == prompt
    first, again = ask(), ask()
    assert (first[0], again[0]) == (0, 96)
    httpx.post(f"{server.url}/reset_prefix_cache").raise_for_status()
    reset, last = ask(), ask()
    assert (reset[0], last[0]) == (0, 96)
    assert first[1] == again[1] == reset[1] == last[1]

    server.wait_idle()
    [load] = httpx.get(f"{server.url}/v1/loads?include=core").json()["loads"]
    assert (load["model"], load["num_total_reqs"], load["token_usage"]) == ("m", 0, 0)
    assert load["cache_hit_rate"] == pytest.approx(2 * 96 / 400)
    names = ("hits", "queries")
    counts = [server.metric(f"vllm:prefix_cache_{name}_total") for name in names]
    assert counts == [2 * 96, 400]
    info = httpx.get(f"{server.url}/server_info").json()
    assert load["max_total_num_tokens"] == info["max_total_tokens"]
    assert server.metric("vllm:cache_config_info", block_size="16") == 1
