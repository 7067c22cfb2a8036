"""Prompts computed by one server and continued by another; the default model, as it is served. The
requests are those of vLLM's proxy, `tests/v1/kv_connector/nixl_integration/toy_proxy_server.py`
there."""

import json
import os
import random
import secrets
import signal
import threading

import httpx
import pytest

from tests.helpers.served import TEXT_WORK

pytestmark = pytest.mark.e2e
MODEL = "smollm2-135m-instruct"
LEASE_S = 2
FOR_ANOTHER = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    **dict.fromkeys(("remote_engine_id", "remote_block_ids", "remote_host", "remote_port")),
}


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    key = tmp_path_factory.mktemp("key") / "key"
    key.write_text(secrets.token_hex(32))
    few = ("--kv-cache-memory-gib", "0.5", "--num-threads", "1")
    apart = ("--kv-transfer", "127.0.0.1", "--kv-transfer-key", str(key))
    return ("--model", MODEL, *few, *apart, "--kv-lease-duration", str(LEASE_S))


@pytest.fixture(scope="module")
def decoder(start_shared_server, options):
    return start_shared_server(*options)


@pytest.fixture(scope="module")
def prefiller(start_shared_server, options):
    return start_shared_server(*options)


def words(number):
    return " ".join("".join(random.choices("abcdefghij", k=5)) for _ in range(number))


def post(server, path, body):
    response = httpx.post(server.url + path, json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def ask(number_of_words):
    """A chat whose answer is drawn by a seed."""
    drawn = {"temperature": 1.0, "seed": random.getrandbits(31), "max_tokens": 12}
    messages = [{"role": "user", "content": words(number_of_words)}]
    return "/v1/chat/completions", {"messages": messages, "logprobs": True} | drawn


def completion(number_of_words):
    drawn = {"temperature": 0.8, "seed": random.getrandbits(31), "max_tokens": 12}
    return "/v1/completions", {"prompt": words(number_of_words), "logprobs": 1} | drawn


def prefill(server, path, body):
    """The body for the server that continues."""
    first = {name: body[name] for name in body if name not in ("stream_options", "min_tokens")}
    first |= {"kv_transfer_params": FOR_ANOTHER, "stream": False, "max_tokens": 1}
    if "max_completion_tokens" in body:
        first["max_completion_tokens"] = 1
    params = post(server, path, first)["kv_transfer_params"]
    assert params["do_remote_prefill"] and not params["do_remote_decode"]
    return body | {"kv_transfer_params": params}


def alone(server, path, body):
    """The choices of a server that has cached nothing for it."""
    return post(server, path, body | {"cache_salt": secrets.token_hex(8)})["choices"]


@pytest.mark.parametrize("make", [ask, completion])
def test_texts_are_those_of_one_server(prefiller, decoder, make):
    for size in (random.randint(20, 60), random.randint(150, 200)):
        path, body = make(size)
        expected = alone(decoder, path, body)
        before = decoder.metric("tandem_kv_transfer_fetched_blocks_total")
        answer = post(decoder, path, prefill(prefiller, path, body))
        assert answer["choices"] == expected and answer["kv_transfer_params"] is None
        usage = answer["usage"]
        num_full = (usage["prompt_tokens"] - 1) // 16 * 16
        assert usage["prompt_tokens_details"]["cached_tokens"] >= num_full
        assert decoder.metric("tandem_kv_transfer_fetched_blocks_total") > before
    assert decoder.metric("tandem_kv_transfer_failed_fetches_total") == 0
    prefiller.wait_idle()


def events(server, path, body):
    """The events of a stream."""
    with httpx.stream("POST", server.url + path, json=body, timeout=60) as answer:
        assert answer.status_code == 200, answer.read()
        *found, end = (line.removeprefix("data: ") for line in answer.iter_lines() if line)
    assert end == "[DONE]"
    return [json.loads(event) for event in found]


@pytest.mark.parametrize("make", [ask, completion])
def test_streams_are_those_of_one_server(prefiller, decoder, make):
    path, body = make(random.randint(30, 80))
    body |= {"min_tokens": 3, "stream": True, "stream_options": {"include_usage": True}}
    salted = body | {"cache_salt": secrets.token_hex(8)}
    *expected, _ = (event["choices"] for event in events(decoder, path, salted))
    *chunks, last = events(decoder, path, prefill(prefiller, path, body))
    assert [chunk["choices"] for chunk in chunks] == expected
    usage = last["usage"]
    num_full = (usage["prompt_tokens"] - 1) // 16 * 16
    assert usage["prompt_tokens_details"]["cached_tokens"] >= num_full > 0


@pytest.mark.parametrize("make", [ask, completion])
def test_a_client_that_leaves_holds_nothing(prefiller, decoder, make):
    path, body = make(random.randint(30, 80))
    body |= {"stream": True, "max_tokens": 400, "ignore_eos": True}
    fetched = decoder.metric("tandem_kv_transfer_fetched_blocks_total")
    decoder.abandon(
        path,
        lambda: decoder.metric("tandem_kv_transfer_fetched_blocks_total") > fetched,
        json=prefill(prefiller, path, body),
    )
    for one in (prefiller, decoder):
        one.wait_idle([*TEXT_WORK, "kv_transfer_lent_blocks"])


def test_what_nobody_fetches_is_given_back(prefiller):
    expired = prefiller.metric("tandem_kv_transfer_expired_loans_total")
    prefill(prefiller, *completion(50))
    assert prefiller.metric("tandem_kv_transfer_lent_blocks") > 0
    prefiller.wait_idle()
    assert prefiller.metric("tandem_kv_transfer_expired_loans_total") == expired + 1
    assert prefiller.metric("tandem_kv_transfer_lent_blocks") == 0


def test_a_prefiller_that_is_killed_costs_no_answer(start_server, options, decoder):
    doomed = start_server(*options)
    path, body = completion(100)
    expected = alone(decoder, path, body)
    moved = prefill(doomed, path, body)
    failed = decoder.metric("tandem_kv_transfer_failed_fetches_total")
    answers = []
    thread = threading.Thread(target=lambda: answers.append(post(decoder, path, moved)))
    with doomed.workers_stopped() as pids:
        thread.start()
        decoder.wait_until(lambda: decoder.metric("tandem_num_requests_waiting"))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    thread.join(60)
    assert answers[0]["choices"] == expected
    assert decoder.metric("tandem_kv_transfer_failed_fetches_total") == failed + 1
    assert "the prompt is computed here" in decoder.log()


def test_a_server_that_shares_nothing_says_so(server):
    path, body = completion(5)
    params = {"do_remote_prefill": True, "remote_host": "127.0.0.1", "remote_port": 1}
    for sent in (FOR_ANOTHER, params):
        answer = httpx.post(
            server.url + path, json=body | {"model": MODEL, "kv_transfer_params": sent}, timeout=60
        )
        assert answer.status_code == 400 and "--kv-transfer" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"stream": True}, "stream"),
        ({"prompt": ["a", "b"]}, "one prompt"),
        ({"kv_transfer_params": {"do_remote_prefill": True, "remote_host": "h"}}, "remote_port"),
    ],
    ids=str,
)
def test_what_cannot_work_is_a_400(decoder, changed, reason):
    path, body = completion(5)
    sent = body | {"kv_transfer_params": FOR_ANOTHER} | changed
    answer = httpx.post(decoder.url + path, json=sent, timeout=60)
    assert answer.status_code == 400 and reason in answer.json()["error"]["message"]
