"""What happens when clients leave, workers die and operators stop the server."""

import asyncio
import json
import os
import signal
import threading

import httpx
import pytest

pytestmark = pytest.mark.e2e
MODEL = "smollm2-135m-instruct"
LONG = {"model": MODEL, "prompt": "Count:", "max_tokens": 4000, "ignore_eos": True}


def answers(server):
    body = {"model": MODEL, "prompt": "One, two,", "max_tokens": 3, "temperature": 0}
    response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=30)
    return response.status_code == 200 and response.json()["choices"][0]["text"] != ""


async def test_a_client_that_leaves_a_stream_frees_its_blocks_within_a_second(server):
    async with httpx.AsyncClient(timeout=30) as client:
        stream = client.stream("POST", f"{server.url}/v1/completions", json=LONG | {"stream": True})
        async with stream as response:
            async for _ in response.aiter_lines():
                break
    await asyncio.to_thread(server.wait_idle, 1.0)


async def test_a_client_that_leaves_while_waiting_frees_its_blocks_within_a_second(server):
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(f"{server.url}/v1/completions", json=LONG, timeout=0.7)
    await asyncio.to_thread(server.wait_idle, 1.0)


async def test_a_hundred_requests_cancelled_at_once_leave_room_for_the_next(server):
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=30, limits=limits) as client:
        url = f"{server.url}/v1/completions"
        tasks = [asyncio.create_task(client.post(url, json=LONG)) for _ in range(100)]
        await asyncio.sleep(1.5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.to_thread(server.wait_idle, 5.0)
    assert await asyncio.to_thread(answers, server)


@pytest.fixture(scope="module")
def mortal_server(start_shared_server):
    """The tests below take it in turn: its worker is killed, then it is stopped. It waits as long
    as a busy machine may need for a request."""
    return start_shared_server("--model", MODEL, "--drain-timeout-s", "60")


def test_a_killed_worker_ends_its_streams_with_an_error_and_comes_back(mortal_server):
    server = mortal_server
    lines = []

    def read():
        body = LONG | {"stream": True}
        url = f"{server.url}/v1/completions"
        with httpx.stream("POST", url, json=body, timeout=60) as response:
            lines.extend(line for line in response.iter_lines() if line.startswith("data:"))

    reader = threading.Thread(target=read)
    reader.start()
    server.wait_until(lambda: server.metric("tandem_num_requests_running"))
    [worker] = server.worker_pids()
    os.kill(worker, signal.SIGKILL)
    reader.join(20)
    assert not reader.is_alive()
    assert lines[-1] == "data: [DONE]"
    error = json.loads(lines[-2].removeprefix("data: "))["error"]
    assert error["code"] == "engine_dead"
    status, body = server.get("/ready")
    assert (status, body["models"][0]["phase"]) in {(503, "restarting"), (503, "starting")}
    server.wait_for("/ready")
    assert server.worker_pids() != [worker]
    assert answers(server)
    assert server.log().count("signal 9") == 1


def test_sigterm_lets_the_running_request_finish(mortal_server):
    server = mortal_server
    body = {"model": MODEL, "prompt": "Count:", "max_tokens": 120, "ignore_eos": True}
    result = {}

    def ask():
        response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
        result["usage"] = response.json()["usage"]

    asking = threading.Thread(target=ask)
    asking.start()
    server.wait_until(lambda: server.metric("tandem_num_requests_running"))
    server.process.send_signal(signal.SIGTERM)
    asking.join(60)
    assert result["usage"]["completion_tokens"] == 120
    assert server.process.wait(20) == 0


def test_a_killed_server_leaves_no_worker_behind(start_server, tiny_llama):
    server = start_server("--model", f"tiny={tiny_llama()}")
    [worker] = server.worker_pids()
    server.process.kill()
    server.process.wait()
    server.wait_until(lambda: not os.path.exists(f"/proc/{worker}"), 10)
