"""Workers that stop without dying: real processes, a worker without a model."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.contract.operations import GENERATE
from engine.contract.status import Phase
from engine.errors import EngineDead
from tests.helpers.worker.calls import collect, pid_of, request, tokens_of, until


def status_of(client, model):
    return next(status for status in client.statuses() if status.model == model)


async def check_replaced(client, model, streams, reason):
    """Check that its requests fail, that only it is unready, and that it serves again."""
    for stream in streams:
        with pytest.raises(EngineDead, match=reason):
            await collect(stream)
    assert status_of(client, model).phase is Phase.RESTARTING
    assert model not in [info.model for info in client.infos(GENERATE)]
    await until(lambda: status_of(client, model).phase is Phase.READY)
    status = status_of(client, model)
    assert (status.restarts, status.stalls) == (1, 1)
    assert tokens_of(await collect(client.submit(request([1, 5], "after", model)))) == [1, 5]


async def test_a_stopped_worker_is_replaced_and_the_others_go_on(start):
    client = await start("a=x", "b=y", worker_timeout_s=2)
    waiting = [client.submit(request([3], str(i), "a")) for i in range(2)]
    os.kill(pid_of(client, "a"), signal.SIGSTOP)
    asked = client.submit(request([1], "asked", "a"))
    await check_replaced(client, "a", [*waiting, asked], "no sign of life for 2 s; try again")
    assert tokens_of(await collect(client.submit(request([1, 7], "b", "b")))) == [1, 7]
    status = status_of(client, "b")
    assert (status.restarts, status.stalls) == (0, 0)


async def test_a_worker_that_is_stopped_while_idle_is_replaced(start):
    client = await start("m=x", worker_timeout_s=2)
    os.kill(pid_of(client, "m"), signal.SIGSTOP)
    await until(lambda: status_of(client, "m").stalls == 1)
    await check_replaced(client, "m", [], "")


async def test_a_dead_lock_is_noticed_although_the_pulse_goes_on(start):
    client = await start("m=x", worker_timeout_s=2)
    locked = client.submit(request([8], "locked"))
    behind = client.submit(request([1], "behind"))
    await check_replaced(client, "m", [locked, behind], "its loop has been blocked for 2 s")


async def test_a_step_without_an_end_is_noticed(start):
    client = await start("m=x", worker_timeout_s=2, step_timeout_s=3)
    await check_replaced(client, "m", [client.submit(request([6]))], "no step has ended for 3 s")


async def test_a_long_step_that_computes_is_let_be(start):
    client = await start("m=x", worker_timeout_s=2)
    assert tokens_of(await collect(client.submit(request([7, 4])))) == [7, 4]
    assert status_of(client, "m").restarts == 0


async def test_a_pause_shorter_than_the_timeout_is_let_be(start):
    client = await start("m=x", worker_timeout_s=10)
    os.kill(pid_of(client, "m"), signal.SIGSTOP)
    stream = client.submit(request([1, 5]))
    await asyncio.sleep(1.5)
    os.kill(pid_of(client, "m"), signal.SIGCONT)
    assert tokens_of(await collect(stream)) == [1, 5]
    assert status_of(client, "m").restarts == 0


SERVER = """
import asyncio, sys
from pathlib import Path
from tests.helpers.worker.calls import FAKE_WORKER, collect, request, tokens_of, until
from engine.worker.client import ProcessEngineClient, WorkerOptions
from engine.contract.settings import EngineConfig
from engine.contract.operations import GENERATE
from engine.contract.model_spec import ModelSpec

async def main():
    options = WorkerOptions(
        config=EngineConfig(worker_timeout_s=2), cache_dir=Path(sys.argv[1]), command=FAKE_WORKER
    )
    client = ProcessEngineClient([ModelSpec.parse("m=x")], options)
    await client.start()
    await until(lambda: client.infos(GENERATE))
    working = client.submit(request([7, 5], "working"))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await asyncio.sleep(1.0)
    answer = tokens_of(await collect(client.submit(request([1, 5], "after"))))
    answer += tokens_of(await collect(working))
    status = client.statuses()[0]
    print(answer, status.restarts, status.stalls, flush=True)
    await client.stop(0)

asyncio.run(main())
"""


def test_a_server_that_was_stopped_itself_ends_no_worker(tmp_path):
    """A laptop that sleeps stops a server, and so does Ctrl-Z before `fg`."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        while server.stdout.readline() != "ready\n":  # log lines
            assert server.poll() is None
        server.send_signal(signal.SIGSTOP)
        time.sleep(3)
        server.send_signal(signal.SIGCONT)
        output, _ = server.communicate("go on\n", timeout=120)
    finally:
        server.kill()
        server.wait()
        server.stdin.close()
        server.stdout.close()
    assert output.splitlines()[-1] == "[1, 5, 7, 5] 0 0"
