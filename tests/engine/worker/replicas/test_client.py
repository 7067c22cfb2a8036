"""A model with several workers is one model: real processes, a worker without a model."""

import asyncio
import os
import random
import signal
from dataclasses import replace

import pytest

from engine.contract.adapter_orders import AdapterOrder
from engine.contract.model_spec import ModelSpec
from engine.contract.operations import GENERATE
from engine.contract.status import Phase
from engine.errors import (
    CorruptFile,
    Draining,
    EngineDead,
    InsufficientMemory,
    ModelConflict,
    ModelNotReady,
    ModelUnloading,
    UnknownModel,
)
from engine.worker import slumber
from tests.helpers.worker.calls import (
    collect,
    is_alive,
    pid_of,
    process_of,
    request,
    tokens_of,
    until,
)


def pids(client, model="m"):
    return [pid_of(client._workers, name) for name in client._sets[model].workers]


def status_of(client, model="m"):
    return next(status for status in client.statuses() if status.model == model)


def loads(client, model="m"):
    return [replica.num_requests for replica in client.replicas(model)]


async def answer(client, tokens, request_id, model="m"):
    return tokens_of(await collect(client.submit(request(tokens, request_id, model))))


async def until_whole(client, model="m"):
    await until(lambda: status_of(client, model).phase is Phase.READY)
    await until(lambda: all(one.is_ready for one in client.replicas(model)))


async def test_it_looks_like_one_model_and_its_requests_are_shared_out(start):
    client = await start("m=x", "other=y", '{"ref": "z", "name": "one"}', replicas=2)
    assert [info.model for info in client.models()] == ["m", "other", "one"]
    assert [status.model for status in client.statuses()] == ["m", "other", "one"]
    assert client.config("m").replicas == 2
    streams = [client.submit(request([3, i], f"r{i}")) for i in range(4)]
    assert loads(client) == [2, 2]
    assert loads(client, "other") == [0, 0]
    for stream in streams:
        await stream.aclose()
    assert loads(client) == [0, 0]
    tokens = [random.randrange(10, 90) for _ in range(5)]
    assert await answer(client, [1, *tokens], "echo") == [1, *tokens]
    held = client.memory()[0].held_bytes
    assert held == {"m": 200, "other": 200, "one": 200}


async def test_a_model_with_one_worker_has_no_replicas(start):
    client = await start("m=x", '{"ref": "y", "name": "two", "settings": {"replicas": 2}}')
    assert client.replicas("m") == []
    assert [one.name for one in client.replicas("two")] == ["two", "two#2"]
    with pytest.raises(UnknownModel, match=r"use one of m, two$"):
        client.submit(request([1], model="two#2"))


async def test_all_hold_as_much_as_the_first(start):
    client = await start("m=x", replicas=3, max_model_len=77)
    for name in ("m#2", "m#3"):
        config = client._workers.config(name)
        assert (config.num_kv_blocks, config.max_model_len) == (10, 77)
    assert client.config("m").num_kv_blocks is None, "the operator has set none"


async def test_a_worker_dies_alone(start):
    """Its requests end with an error, the others go on, and it comes back."""
    client = await start("m=x", replicas=2)
    streams = [client.submit(request([3, i], f"r{i}")) for i in range(6)]
    victim = pids(client)[1]
    os.kill(victim, signal.SIGKILL)
    outcomes = asyncio.gather(*map(collect, streams), return_exceptions=True)
    await until(lambda: not client.replicas("m")[1].is_ready)
    assert status_of(client).phase is Phase.READY
    assert status_of(client).detail == "1 of 2 replicas are ready"
    assert await answer(client, [1, 5], "meanwhile") == [1, 5]
    await until_whole(client)
    assert status_of(client).restarts == 1
    assert loads(client) == [3, 0]
    for stream in streams:
        await stream.aclose()
    ended = [one for one in await outcomes if isinstance(one, EngineDead)]
    assert len(ended) == 3
    assert "worker of model 'm#2' ended" in str(ended[0])
    assert loads(client) == [0, 0]
    assert victim not in pids(client)


async def test_only_if_all_are_dead_it_is_not_ready(start):
    client = await start("m=x", replicas=2)
    for pid in pids(client):
        os.kill(pid, signal.SIGKILL)
    await until(lambda: status_of(client).phase is not Phase.READY)
    with pytest.raises(ModelNotReady):
        client.submit(request([1]))
    await until_whole(client)
    assert await answer(client, [1, 9], "after") == [1, 9]


async def test_adapters_are_in_all_workers(start):
    client = await start("m=x", replicas=2, max_loras=9)
    report = await client.load_adapter("m", AdapterOrder(name="poet", folder="good"))
    assert report.num_layers == 3
    [info] = client.infos(GENERATE)
    assert info.adapters == ("poet",)
    with pytest.raises(ModelConflict, match="already served"):
        client.load_adapter("m", AdapterOrder(name="poet", folder="good"))
    with pytest.raises(ModelConflict, match="already served"):
        client.load_adapter("m", AdapterOrder(name="m", folder="good"))
    streams = [client.submit(replace(request([3], f"r{i}"), adapter="poet")) for i in range(2)]
    assert loads(client) == [1, 1]
    unload = client.unload_adapter("m", "poet", 0.2)
    for stream in streams:
        with pytest.raises(ModelUnloading):
            await collect(stream)
    await unload
    assert client.infos(GENERATE)[0].adapters == ()


async def test_an_adapter_that_one_worker_cannot_load_is_in_none(start):
    client = await start("m=x", replicas=2, max_loras=9)
    with pytest.raises(CorruptFile):
        await client.load_adapter("m", AdapterOrder(name="poet", folder="broken"))
    assert client.infos(GENERATE)[0].adapters == ()
    os.kill(pids(client)[1], signal.SIGKILL)
    await until(lambda: not client.replicas("m")[1].is_ready)
    with pytest.raises(ModelNotReady, match=r"all 2 replicas .* m#2 is not ready"):
        client.load_adapter("m", AdapterOrder(name="poet", folder="good"))


async def test_it_comes_and_goes_as_a_whole(start):
    client = await start("m=x")
    spec = ModelSpec.create("y", name="n", settings={"replicas": 3})
    info = await client.load(spec)
    assert info.model == "n" and len(client.replicas("n")) == 3
    before = pids(client, "n")
    with pytest.raises(ModelConflict, match="in 3 replicas"):
        client.load(spec)
    await client.unload("n", 0)
    assert [status.model for status in client.statuses()] == ["m"]
    assert [name for name, _ in client.gone] == ["n"]
    assert not any(map(is_alive, before))
    assert client.memory()[0].held_bytes == {"m": 100}
    assert (await client.load(spec)).model == "n"


async def test_more_than_fit_are_refused_and_leave_nothing(start):
    """None of them makes room for another; one that is idle would have had to."""
    client = await start('{"ref": "w300", "name": "m", "settings": {"pinned": true}}')
    spec = ModelSpec.create("w300", name="n", settings={"replicas": 3})
    with pytest.raises(InsufficientMemory) as refused:
        await client.load(spec)
    message = str(refused.value)
    assert "2 of 3 replicas could be loaded: n#" in message
    assert "set replicas to 2, or kv_cache_memory_gib to less" in message
    assert [status.model for status in client.statuses()] == ["m"]
    assert client.memory()[0].held_bytes == {"m": 300}


async def test_other_models_make_room_for_replicas(start):
    client = await start("m=w300", sleep_file_gib=0)
    await client.load(ModelSpec.create("w300", name="n", settings={"replicas": 3}))
    assert status_of(client, "n").phase is Phase.READY
    assert status_of(client).phase is Phase.SLEEPING
    assert client.memory()[0].held_bytes == {"n": 900}


async def test_more_than_fit_are_refused_from_the_start_and_the_status_says_why(start):
    client = await start("m=w400", wait=False, replicas=3)
    await until(lambda: status_of(client).phase is Phase.FAILED)
    assert "2 of 3 replicas" in status_of(client).failure.message
    with pytest.raises(ModelNotReady, match="set replicas to 2"):
        client.submit(request([1]))
    assert client.models() == []
    await until(lambda: client.memory()[0].held_bytes == {})
    assert await client.load(ModelSpec.create("w400", name="m", settings={"replicas": 2}))
    assert client.gone == [("m", "/somewhere")]
    assert status_of(client).phase is Phase.READY
    await client.unload("m", 0)


async def test_it_sleeps_and_wakes_as_a_whole_and_on_a_request(start, monkeypatch):
    monkeypatch.setattr(slumber, "RELOAD_PAUSE_S", 0.01)
    client = await start("m=x", replicas=2, sleep_file_gib=0)
    await client.sleep("m")
    assert status_of(client).phase is Phase.SLEEPING and client.is_asleep("m")
    assert [info.model for info in client.models()] == ["m"]
    assert all(process_of(client._workers, name) is None for name in ("m", "m#2"))
    assert await answer(client, [1, 7], "wakes one") == [1, 7]
    assert sorted(one.is_ready for one in client.replicas("m")) == [False, True]
    assert not client.is_asleep("m")
    assert (await client.wake("m")).model == "m"
    assert all(one.is_ready for one in client.replicas("m"))
    assert status_of(client).num_wakes == 2


async def test_a_sleeping_worker_wakes_beside_busy_ones(start, monkeypatch):
    monkeypatch.setattr(slumber, "RELOAD_PAUSE_S", 0.01)
    client = await start("m=x", replicas=2, sleep_file_gib=0)
    await client.sleep("m")
    first = client.submit(request([3], "first"))
    await until(lambda: any(one.is_ready for one in client.replicas("m")))
    second = client.submit(request([3], "second"))
    await until_whole(client)
    third = client.submit(request([3], "third"))
    assert sorted(loads(client)) == [1, 2]
    for stream in (first, second, third):
        await stream.aclose()


async def test_metrics_add_up_over_restarts(start):
    """Each worker counts from zero, and listeners learn whose report it is."""
    client = await start("m=x", replicas=2)
    heard = []
    client.steps.add(GENERATE, lambda model, stats, worker: heard.append((model, worker)))
    streams = [client.submit(request([1, 5], f"r{i}")) for i in range(2)]
    for stream in streams:
        await collect(stream)
    assert set(heard) == {("m", "m"), ("m", "m#2")}
    assert client.stats("m").num_running == 0


async def test_a_stop_ends_all(start):
    client = await start("m=x", replicas=2)
    before = pids(client)
    await client.stop(0)
    assert not any(map(is_alive, before))
    with pytest.raises(Draining):
        client.submit(request([1]))


async def test_names_of_workers_are_not_those_of_models(start):
    client = await start("m=x", replicas=2)
    with pytest.raises(ModelConflict, match="name of another model"):
        client.load(ModelSpec.create("y", name="m#2"))
