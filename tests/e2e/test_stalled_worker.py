"""A real worker that is stopped by a signal: its clients hear of it, and it is replaced."""

import os
import signal

import httpx
import pytest

from tests.helpers.served import Stream

pytestmark = pytest.mark.e2e
BODY = {"model": "tiny", "prompt": "Count:", "max_tokens": 400, "ignore_eos": True}


def test_a_stopped_worker_ends_its_streams_with_an_error_and_is_replaced(start_server, tiny_llama):
    server = start_server("--model", f"tiny={tiny_llama()}", "--worker-timeout-s", "4")
    [worker] = server.worker_pids()
    os.kill(worker, signal.SIGSTOP)
    with Stream(server, **BODY) as stream:
        error = stream.error()
    assert error["code"] == "engine_dead"
    assert "no sign of life for 4 s" in error["message"]
    assert server.get("/ready")[0] == 503
    server.wait_for("/ready")
    assert server.worker_pids() not in ([], [worker])
    answer = httpx.post(f"{server.url}/v1/completions", json=BODY, timeout=60)
    assert answer.json()["usage"]["completion_tokens"] == 400
    assert server.metric("tandem_engine_stalls_total") == 1
    assert server.log().count("a worker hangs and is restarted") == 1
