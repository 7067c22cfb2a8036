"""A real worker that is stopped by a signal: its clients hear of it, and it is replaced."""

import json
import os
import signal
import threading

import httpx
import pytest

pytestmark = pytest.mark.e2e
BODY = {"model": "tiny", "prompt": "Count:", "max_tokens": 400, "ignore_eos": True}


def test_a_stopped_worker_ends_its_streams_with_an_error_and_is_replaced(start_server, tiny_llama):
    server = start_server("--model", f"tiny={tiny_llama()}", "--worker-timeout-s", "4")
    url, lines = f"{server.url}/v1/completions", []
    [worker] = server.worker_pids()
    os.kill(worker, signal.SIGSTOP)

    def read():
        with httpx.stream("POST", url, json=BODY | {"stream": True}, timeout=60) as response:
            lines.extend(line for line in response.iter_lines() if line.startswith("data:"))

    reader = threading.Thread(target=read)
    reader.start()
    seen = set()
    server.wait_until(lambda: server.metric("tandem_engine_stalls_total"))

    def is_replaced():
        status, body = server.get("/ready")
        seen.add((status, body["models"][0]["phase"]))
        return status == 200 and server.worker_pids() not in ([], [worker])

    server.wait_until(is_replaced)
    reader.join(20)
    assert lines[-1] == "data: [DONE]"
    error = json.loads(lines[-2].removeprefix("data: "))["error"]
    assert error["code"] == "engine_dead"
    assert "no sign of life for 4 s" in error["message"]
    assert (503, "restarting") in seen
    assert httpx.post(url, json=BODY, timeout=60).json()["usage"]["completion_tokens"] == 400
    assert server.metric("tandem_engine_stalls_total") == 1
    assert server.log().count("a worker hangs and is restarted") == 1
