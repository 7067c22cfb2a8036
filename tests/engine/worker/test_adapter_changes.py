"""Adapters of a model that serves come and go: real processes, a worker without a model."""

import asyncio
import os
import signal
from dataclasses import replace

import pytest

from engine.contract.adapter_orders import AdapterOrder, AdapterReport
from engine.contract.operations import GENERATE
from engine.errors import (
    CorruptFile,
    EngineDead,
    ModelConflict,
    ModelNotReady,
    ModelUnloading,
    UnknownAdapter,
    UnknownModel,
)
from tests.helpers.worker.calls import collect, pid_of, request, restart, tokens_of, until


def order(name, folder="good", **more):
    return AdapterOrder(name=name, folder=folder, **more)


def adapters(client):
    return [info.adapters for info in client.infos(GENERATE)]


def ask(client, adapter, tokens=(1, 5), model="m"):
    return client.submit(replace(request(list(tokens), adapter, model), adapter=adapter))


async def test_one_comes_and_goes(start):
    client = await start("m=x", max_loras=9)
    report = await client.load_adapter("m", order("poet"))
    assert report == AdapterReport(num_layers=3, ranks=(8,))
    assert adapters(client) == [("poet",)]
    assert tokens_of(await collect(ask(client, "poet"))) == [1, 5]
    await client.unload_adapter("m", "poet", 5)
    assert adapters(client) == [()]
    with pytest.raises(UnknownAdapter, match="no adapter 'poet'"):
        client.unload_adapter("m", "poet", 5)
    await client.load_adapter("m", order("poet"))
    assert adapters(client) == [("poet",)]


async def test_a_worker_that_is_started_anew_has_the_same_ones(start):
    client = await start("m=x", lora=("first=a", "second=b"), max_loras=9)
    await client.load_adapter("m", order("third", "c"))
    await client.load_adapter("m", order("second", "other", replaces=True))
    await client.unload_adapter("m", "first", 5)
    with pytest.raises(CorruptFile, match="it is cut off"):
        await client.load_adapter("m", order("fourth", "broken"))
    await restart(client)
    assert set(adapters(client)[0]) == {"second", "third"}
    assert client.config("m").adapters == {"second": "other", "third": "c"}


async def test_a_worker_that_dies_while_one_comes_or_goes(start):
    client = await start("m=x", lora=("old=a",), max_loras=9)
    running = ask(client, "old", [3])
    loading = client.load_adapter("m", order("new", "slow"))
    unloading = client.unload_adapter("m", "old", 30)
    await restart(client)
    with pytest.raises(EngineDead):
        await loading
    with pytest.raises(EngineDead):
        await collect(running)
    await unloading
    assert adapters(client) == [()]
    assert (await client.load_adapter("m", order("new"))).num_layers == 3


async def test_unloading_waits_for_requests_and_refuses_new_ones(start):
    client = await start("m=x", lora=("poet=a",), max_loras=9)
    running = ask(client, "poet", [3])
    unloading = client.unload_adapter("m", "poet", 30)
    assert adapters(client) == [()]
    with pytest.raises(ModelConflict, match="being loaded or unloaded"):
        client.load_adapter("m", order("poet"))
    await asyncio.sleep(0.1)
    assert not unloading.done()
    assert tokens_of(await collect(client.submit(request([1, 9], "other")))) == [1, 9]
    await running.aclose()
    await asyncio.wait_for(unloading, 60)


async def test_what_does_not_finish_in_time_ends_with_a_clear_error(start):
    client = await start("m=x", lora=("poet=a", "judge=b"), max_loras=9)
    ends, stays = ask(client, "poet", [3]), ask(client, "judge", [3])
    await asyncio.wait_for(client.unload_adapter("m", "poet", 0.1), 60)
    with pytest.raises(ModelUnloading, match="'poet' was unloaded before"):
        await collect(ends)
    assert not stays.finished
    await stays.aclose()


async def test_a_name_means_one_thing(start):
    other = '{"ref": "y", "name": "n", "settings": {"lora": ["judge=b"]}}'
    client = await start("m=x", other, lora=("poet=a",), max_loras=9)
    for name in ("m", "n", "poet", "judge"):
        with pytest.raises(ModelConflict, match=f"'{name}' is already served"):
            client.load_adapter("m", order(name))
    for name in ("m", "n", "judge"):
        with pytest.raises(ModelConflict):
            client.load_adapter("m", order(name, replaces=True))
    loading = client.load_adapter("m", order("late", "slow"))
    for model in "mn":
        with pytest.raises(ModelConflict, match="being loaded or unloaded"):
            client.load_adapter(model, order("late"))
    assert not loading.done()
    with pytest.raises(UnknownModel):
        client.load_adapter("other", order("b"))


async def test_a_model_that_does_not_serve_takes_none(start):
    client = await start("m=x", lora=("poet=a",), max_loras=9)
    os.kill(pid_of(client, "m"), signal.SIGKILL)
    await until(lambda: not client.infos(GENERATE))
    with pytest.raises(ModelNotReady):
        client.load_adapter("m", order("b"))
    with pytest.raises(ModelNotReady):
        client.unload_adapter("m", "poet", 1)
    await until(lambda: client.infos(GENERATE))
    assert adapters(client) == [("poet",)]


async def test_a_model_can_leave_while_its_adapters_do(start):
    client = await start("m=x", lora=("poet=a",), max_loras=9)
    ask(client, "poet", [3])
    loading = client.load_adapter("m", order("new", "slow"))
    unloading = client.unload_adapter("m", "poet", 30)
    await asyncio.wait_for(client.unload("m", 0.1), 60)
    await unloading
    with pytest.raises(EngineDead):
        await loading
