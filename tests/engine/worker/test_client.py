"""The process border: real processes and sockets, a worker without a model."""

import asyncio
import os
import signal
import tempfile

import psutil
import pytest
import uvloop

from engine.contract.generate import EngineStats, ModelInfo, TokenEvent
from engine.contract.model_spec import ModelSpec
from engine.contract.operations import GENERATE
from engine.contract.request import FinishReason
from engine.contract.settings import EngineConfig
from engine.contract.status import Phase
from engine.errors import (
    Draining,
    EngineDead,
    Failure,
    ModelNotReady,
    QueueFull,
    UnknownAdapter,
    UnknownModel,
)
from engine.worker.client import ProcessEngineClient, WorkerOptions
from tests.helpers.worker.calls import (
    FAKE_WORKER,
    broken_text,
    collect,
    is_alive,
    pid_of,
    process_of,
    request,
    restart,
    slow_text,
    tokens_of,
    until,
)
from tests.helpers.worker.in_process_client import InProcessEngineClient


async def test_requests_reach_their_model_and_come_back_in_order(start):
    client = await start("a=x", "b=y")
    streams = [
        client.submit(request([1, i], request_id=str(i), model="ab"[i % 2])) for i in range(10)
    ]
    for i, stream in enumerate(streams):
        assert tokens_of(await collect(stream)) == [1, i]


async def test_a_stream_ends_after_every_completion_has_ended(start):
    client = await start("m=x")
    events = await collect(client.submit(request([1], n=3)))
    assert [e.index for e in events if e.finish_reason] == [0, 1, 2]


async def test_unknown_model_names_the_served_ones(start):
    client = await start("m=x", "b=broken", wait=False)
    await until(lambda: client.infos(GENERATE))
    with pytest.raises(UnknownModel, match=r"use one of m$"):
        client.submit(request([1], model="other"))
    for name in ("m", "other"):
        with pytest.raises(UnknownAdapter, match=f"'m' has no adapter '{name}'"):
            client.unload_adapter("m", name, 1.0)


async def test_a_loading_model_reports_progress_and_refuses(start):
    client = await start("m=slow", wait=False)
    with pytest.raises(ModelNotReady):
        client.submit(request([1]))
    await until(lambda: client.statuses()[0].phase is Phase.LOADING)
    assert client.statuses()[0].progress == 0.5
    await until(lambda: client.infos(GENERATE))


async def test_a_model_that_cannot_load_stays_down_with_its_reason(start):
    client = await start("m=broken", wait=False)
    await until(lambda: client.statuses()[0].phase is Phase.FAILED)
    status = client.statuses()[0]
    assert status.failure == Failure(
        "corrupt_file", "the checkpoint is truncated", hint="looked for /somewhere"
    )
    assert status.news == "the checkpoint is truncated"
    assert status.restarts == 0


async def test_a_model_whose_process_cannot_be_started_is_not_waited_for(tmp_path):
    """For example because the system allows no more processes."""
    missing = str(tmp_path / "no-program")
    options = WorkerOptions(config=EngineConfig(), cache_dir=tmp_path, command=(missing,))
    client = ProcessEngineClient([ModelSpec.parse("m=x")], options)
    await client.start()
    try:
        await until(lambda: client.statuses()[0].phase is Phase.FAILED)
        failure = client.statuses()[0].failure
    finally:
        await client.stop(0)
    assert failure.code == EngineDead.code
    assert "cannot be started" in failure.message and missing in failure.message


async def text_that_crashes(path):
    raise RecursionError("deep inside")


async def text_of_another_model(path):
    return 100


async def test_a_model_is_ready_once_its_text_side_was_tried(start):
    client = await start("m=x", wait=False, check_text=slow_text)
    phases = set()
    while not client.infos(GENERATE):
        phases.add(client.statuses()[0].phase)
        await asyncio.sleep(0.01)
    assert Phase.READY not in phases
    assert tokens_of(await collect(client.submit(request([1, 5])))) == [1, 5]


@pytest.mark.parametrize("ref", ["x", "slow"])
@pytest.mark.parametrize(
    ("check", "code", "words"),
    [
        (broken_text, "corrupt_file", "the chat template is damaged"),
        (text_that_crashes, "model_load_failed", "cannot be read (RecursionError)"),
        (text_of_another_model, "model_load_failed", "token id 100 and the model's highest is 99"),
    ],
)
async def test_a_model_whose_text_side_does_not_work_is_not_served(start, ref, check, code, words):
    client = await start(f"m={ref}", wait=False, check_text=check)
    await until(lambda: client.statuses()[0].phase is Phase.FAILED)
    status = client.statuses()[0]
    assert status.failure.code == code
    assert words in status.failure.message
    assert client._supervisors["m"]._worker is None
    assert not client.infos(GENERATE)


async def test_a_worker_that_comes_back_is_tried_again(start):
    tried = []

    async def check(path):
        tried.append(path)
        return 7

    client = await start("m=x", check_text=check)
    await restart(client)
    assert tried == ["/somewhere", "/somewhere"]


async def test_death_ends_the_requests_in_it_and_the_worker_comes_back(start):
    client = await start("m=x")
    await collect(client.submit(request([1], "before")))
    assert client.stats("m") is not None
    waiting = client.submit(request([3], "waits"))
    dying = client.submit(request([2], "dies"))
    with pytest.raises(EngineDead):
        await collect(dying)
    with pytest.raises(EngineDead):
        await collect(waiting)
    assert not client.infos(GENERATE)
    await until(lambda: client.infos(GENERATE))
    assert client.statuses()[0].restarts == 1
    assert client.stats("m") is None  # else metrics say that the dead one's requests run
    assert tokens_of(await collect(client.submit(request([1, 5], "after")))) == [1, 5]


async def test_time_is_left_to_nobody_whose_worker_died(start):
    client = await start("m=x")
    waiting = client.submit(request([3]))
    assert client._image_share.bound == EngineConfig().image_share
    os.kill(pid_of(client, "m"), signal.SIGKILL)
    with pytest.raises(EngineDead):
        await collect(waiting)
    assert client._image_share.bound is None


async def test_an_idle_worker_that_is_killed_comes_back(start):
    client = await start("m=x")
    await restart(client)
    assert client.statuses()[0].restarts == 1


async def test_closing_a_stream_aborts_once(start):
    client = await start("m=x")
    reports = []
    client.steps.add(GENERATE, lambda model, stats, worker: reports.append(stats))
    stream = client.submit(request([3]))
    await stream.aclose()
    await stream.aclose()
    assert await collect(stream) == []
    await collect(client.submit(request([1], "other")))
    assert [r.num_steps for r in reports if r.num_steps] == [1]


async def test_one_completion_ends_and_the_others_go_on(in_process):
    engine = in_process._engine
    stream = in_process.submit(request([1], "many", n=2))
    events = aiter(stream)
    first = await anext(events)
    stream.end(1)
    stream.end(1)
    rest = [event async for event in events]
    assert {event.index for event in [first, *rest]} == {0}
    assert rest[-1].finish_reason is FinishReason.LENGTH
    alone = in_process.submit(request([1], "alone"))
    alone.end(0)
    await collect(alone)
    await collect(in_process.submit(request([1], "after")))
    assert engine.aborted == [("many", 1), ("alone", 0)], "once each, and no whole request"


async def test_stopping_lets_running_requests_finish_and_refuses_new_ones(start):
    client = await start("m=x")
    stream = client.submit(request([4, 7]))
    stopping = asyncio.create_task(client.stop(60))
    await asyncio.sleep(0.05)
    with pytest.raises(Draining):
        client.submit(request([1], "late"))
    assert tokens_of(await collect(stream)) == [4, 7]
    await stopping
    assert client.statuses()[0].phase is Phase.STOPPED


async def test_workers_end_when_the_server_is_gone(start):
    client = await start("m=x")
    process = process_of(client, "m")
    process.stdin.close()
    await until(lambda: process.returncode is not None)


@pytest.fixture
def sockets(tmp_path, monkeypatch):
    """Where sockets are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return lambda: list(tmp_path.glob("tandem-*"))


async def test_a_connected_socket_leaves_nothing_to_clean_up(start, sockets):
    client = await start("m=x")
    assert not sockets()
    assert tokens_of(await collect(client.submit(request([1, 2])))) == [1, 2]


async def test_a_worker_removes_its_socket_when_the_server_is_gone(start, sockets):
    client = await start("m=mute", wait=False)
    await until(lambda: process_of(client, "m") is not None)
    assert sockets()
    # As when the server was killed: its supervisor does nothing more.
    process_of(client, "m").stdin.close()
    await until(lambda: not sockets())


@pytest.mark.parametrize("end", ["server", "worker"])
async def test_what_a_worker_started_ends_with_it(start, end):
    client = await start("m=x")
    process = process_of(client, "m")
    (child,) = tokens_of(await collect(client.submit(request([5]))))
    assert psutil.Process(child).is_running()
    if end == "server":
        process.stdin.close()
    else:
        process.kill()
    await until(lambda: not is_alive(child))


class CountingEngine:
    """Generates 0, 1, 2 … for each request until its max_tokens."""

    def __init__(self):
        self.requests, self.aborted = {}, []

    def add(self, request):
        if request.request_id == "refuse":
            raise QueueFull("too many")
        if request.request_id == "crash":
            raise ZeroDivisionError
        self.requests[request.request_id] = [request, 0]

    def abort(self, request_id, index=None):
        self.aborted.append(request_id if index is None else (request_id, index))
        if index is None:
            self.requests.pop(request_id, None)

    def has_work(self):
        return bool(self.requests)

    def step(self):
        events = []
        for key, entry in list(self.requests.items()):
            done = entry[1] + 1 == entry[0].sampling.max_tokens
            reason = FinishReason.LENGTH if done else None
            events.append(TokenEvent(request_id=key, token_ids=[entry[1]], finish_reason=reason))
            entry[1] += 1
            if done:
                del self.requests[key]
        return events, self.stats()

    def stats(self):
        return EngineStats(num_running=len(self.requests))

    def shutdown(self):
        pass


@pytest.fixture
async def in_process():
    info = ModelInfo(
        model="m",
        path="",
        architecture="Fake",
        max_model_len=100,
        vocab_size=100,
        dtype="float32",
        created=0,
        num_kv_blocks=10,
        kv_block_size=16,
    )
    client = InProcessEngineClient(CountingEngine(), info)
    await client.start()
    yield client
    await client.stop(1)


async def test_in_process_client_behaves_like_the_other(in_process):
    streams = [in_process.submit(request([1], str(i))) for i in range(5)]
    for stream in streams:
        assert tokens_of(await collect(stream)) == list(range(16))
    refused = await collect(in_process.submit(request([1], "refuse")))
    assert (refused[0].finish_reason, refused[0].failure.code) == (FinishReason.ERROR, "queue_full")
    [failed] = await collect(in_process.submit(request([1], "crash")))
    assert (failed.finish_reason, failed.failure.code) == (FinishReason.ERROR, "request_failed")
    assert len(await collect(in_process.submit(request([1], "after")))) == 16


def test_workers_start_under_the_servers_own_event_loop(tmp_path):
    """uvloop takes fewer options for processes than asyncio's loop."""

    async def serve():
        options = WorkerOptions(config=EngineConfig(), cache_dir=tmp_path, command=FAKE_WORKER)
        client = ProcessEngineClient([ModelSpec.parse("m=x")], options)
        await client.start()
        try:
            await until(lambda: client.infos(GENERATE))
            return tokens_of(await collect(client.submit(request([1, 5]))))
        finally:
            await client.stop(0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(serve()) == [1, 5]


async def test_a_worker_needs_no_programs_to_get_its_environment(tmp_path, monkeypatch):
    """A small container may have nothing on its PATH, not even `env`."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    options = WorkerOptions(
        config=EngineConfig(device="cuda:1"),
        cache_dir=tmp_path,
        command=FAKE_WORKER,
        tunables="glibc.malloc.hugetlb=1",
        visible_gpus=("5", "7"),
    )
    client = ProcessEngineClient([ModelSpec.parse("m=x")], options)
    await client.start()
    try:
        await until(lambda: client.infos(GENERATE))
        environment = psutil.Process(pid_of(client, "m")).environ()
    finally:
        await client.stop(0)
    assert environment["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert environment["CUDA_VISIBLE_DEVICES"] == "7"
    assert environment["PATH"] == str(tmp_path), "the rest is the server's"
