"""What happens when clients leave, workers die and operators stop the server."""

import asyncio
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.helpers.served import Stream

pytestmark = pytest.mark.e2e
MODEL = "smollm2-135m-instruct"
LONG = {"model": MODEL, "prompt": "Count:", "max_tokens": 8000, "ignore_eos": True}


STARTING = {"restarting", "starting", "loading", "warming_up"}


def answers(server):
    body = {"model": MODEL, "prompt": "One, two,", "max_tokens": 3, "temperature": 0}
    response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    return response.status_code == 200 and response.json()["choices"][0]["text"] != ""


def num_computed(server):
    """How many tokens the model has computed."""
    return server.metric("tandem_iteration_tokens_sum", model_name=MODEL)


def is_running(server):
    return server.metric("tandem_num_requests_running", model_name=MODEL) > 0


def test_a_client_that_leaves_a_stream_frees_its_blocks(server):
    before = num_computed(server)
    with Stream(server, **LONG) as stream:
        stream.wait_for_events()
    server.wait_idle()
    assert num_computed(server) - before < LONG["max_tokens"]


def test_a_client_that_leaves_while_waiting_frees_its_blocks(server):
    before = num_computed(server)
    server.abandon("/v1/completions", lambda: is_running(server), json=LONG)
    server.wait_idle()
    assert num_computed(server) - before < LONG["max_tokens"]


async def test_a_hundred_requests_cancelled_at_once_leave_room_for_the_next(server):
    before = num_computed(server)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=60, limits=limits) as client:
        url = f"{server.url}/v1/completions"
        tasks = [asyncio.create_task(client.post(url, json=LONG)) for _ in range(100)]
        await asyncio.to_thread(server.wait_until, lambda: server.num_in_flight() >= 100)
        await asyncio.to_thread(server.wait_until, lambda: is_running(server))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.to_thread(server.wait_idle)
    assert num_computed(server) - before < 100 * LONG["max_tokens"]
    assert await asyncio.to_thread(answers, server)


@pytest.fixture(scope="module")
def mortal_server(start_shared_server):
    """The tests below take it in turn: its worker is killed, then it is stopped. It waits as long
    as a busy machine may need for a request."""
    return start_shared_server("--model", MODEL, "--drain-timeout-s", "60")


def test_a_killed_worker_ends_its_streams_with_an_error_and_comes_back(mortal_server):
    server = mortal_server
    [worker] = server.worker_pids()
    with Stream(server, **LONG) as stream:
        stream.wait_for_events()
        os.kill(worker, signal.SIGKILL)
        assert stream.error()["code"] == "engine_dead"
    status, body = server.get("/ready")
    assert status == 503 and body["models"][0]["phase"] in STARTING
    server.wait_for("/ready")
    assert server.worker_pids() != [worker]
    assert answers(server)
    assert server.log().count("signal 9") == 1


def test_sigterm_lets_the_running_request_finish(mortal_server):
    server = mortal_server
    url, body = f"{server.url}/v1/completions", LONG | {"max_tokens": 120}
    with ThreadPoolExecutor(1) as pool:
        with server.workers_stopped():
            answer = pool.submit(httpx.post, url, json=body, timeout=60)
            server.wait_until(lambda: server.num_in_flight() == 1)
            server.process.send_signal(signal.SIGTERM)
            server.wait_until(lambda: server.get("/ready")[1]["phase"] == "draining")
        assert answer.result().json()["usage"]["completion_tokens"] == 120
    assert server.process.wait(60) == 0


def test_a_killed_server_leaves_no_worker_behind(start_server, tiny_llama):
    server = start_server("--model", f"tiny={tiny_llama()}")
    [worker] = server.worker_pids()
    server.process.kill()
    server.process.wait()
    server.wait_until(lambda: not os.path.exists(f"/proc/{worker}"))
