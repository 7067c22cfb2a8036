"""Models that come and go while others serve: real processes, a worker without a model."""

import asyncio
import contextvars
import os
import random
import signal

import pytest

from engine.contract.model_spec import ModelSpec
from engine.contract.operations import GENERATE
from engine.contract.settings import EngineConfig
from engine.contract.status import Phase
from engine.errors import (
    CorruptFile,
    Draining,
    EngineDead,
    InsufficientMemory,
    InvalidParameter,
    ModelConflict,
    ModelUnloading,
    UnknownModel,
)
from tests.helpers.worker.calls import (
    broken_text,
    collect,
    good_text,
    is_alive,
    pid_of,
    process_of,
    request,
    restart,
    slow_text,
    tokens_of,
    until,
)


def spec(text, **more):
    name, _, ref = text.partition("=")
    return ModelSpec.create(ref, name=name, **more)


def names(client):
    return [status.model for status in client.statuses()]


def held(client, model):
    return client._arbiter.held("cpu", model)


async def pid_once_started(client, model):
    await until(lambda: process_of(client, model) is not None)
    return pid_of(client, model)


async def test_a_model_comes_and_goes_while_another_answers(start):
    client = await start("a=x")
    stream = client.submit(request([4, 7], "long", "a"))
    loading = client.load(spec("b=y"))
    assert [status.joining for status in client.statuses()] == [False, True]
    info = await loading
    assert (info.model, names(client)) == ("b", ["a", "b"])
    assert [status.joining for status in client.statuses()] == [False, False]
    assert (held(client, "a"), held(client, "b")) == (100, 100)
    assert tokens_of(await collect(client.submit(request([1, 5], "b", "b")))) == [1, 5]
    pid = pid_of(client, "b")

    await client.unload("b", 60)
    assert (names(client), client.gone) == (["a"], [("b", None)]), "a's text side is there, too"
    assert not is_alive(pid)
    assert (held(client, "b"), client._arbiter.free("cpu")) == (0, 900)
    assert client.stats("b") is None and client.config("b") is None
    with pytest.raises(UnknownModel):
        client.submit(request([1], "late", "b"))
    assert tokens_of(await collect(stream)) == [4, 7]


async def test_a_model_has_settings_of_its_own(start):
    client = await start("a=x", max_num_seqs=4)
    info = await client.load(spec("b=y", settings={"max_model_len": 33}))
    assert info.max_model_len == 33
    assert client.infos(GENERATE)[0].max_model_len == 100
    config = client.config("b")
    assert (config.max_model_len, config.max_num_seqs) == (33, 4)
    assert client.config("a") == EngineConfig(max_num_seqs=4)


async def test_unloading_waits_for_what_runs_and_refuses_what_is_new(start):
    client = await start("m=x")
    running = client.submit(request([4, 7]))
    pid = pid_of(client, "m")
    unloading = client.unload("m", 60)
    [status] = client.statuses()
    assert (status.phase, status.news) == (Phase.DRAINING, "it is being unloaded")
    assert client.infos(GENERATE) == []
    with pytest.raises(ModelUnloading, match="'m' is being unloaded"):
        client.submit(request([1], "late"))
    with pytest.raises(ModelConflict, match="already being unloaded"):
        client.unload("m", 0)
    with pytest.raises(ModelConflict, match="being unloaded; load it again"):
        client.load(spec("m=x"))
    assert tokens_of(await collect(running)) == [4, 7]
    await unloading
    assert names(client) == [] and not is_alive(pid)
    assert client.gone == [("m", "/somewhere")]
    with pytest.raises(UnknownModel):
        client.unload("m", 0)


async def test_what_does_not_finish_in_time_ends_with_a_clear_error(start):
    client = await start("m=x")
    waiting = [client.submit(request([3], str(i))) for i in range(3)]
    await asyncio.wait_for(client.unload("m", 0.2), 60)
    for stream in waiting:
        with pytest.raises(ModelUnloading, match="unloaded before the request was complete"):
            await collect(stream)


async def test_the_same_name_serves_again_after_it_was_unloaded(start):
    client = await start("m=x")
    for i in range(3):
        await client.unload("m", 0)
        await client.load(spec("m=y"))
        assert tokens_of(await collect(client.submit(request([1, i], str(i))))) == [1, i]
        assert held(client, "m") == 100


async def test_two_loads_of_one_name(start):
    client = await start("a=x")
    loading = client.load(spec("b=slow"))
    with pytest.raises(ModelConflict, match="'b' is already being loaded"):
        client.load(spec("b=y"))
    with pytest.raises(ModelConflict, match="'a' is already loaded"):
        client.load(spec("a=y"))
    await loading
    assert client.infos(GENERATE)[1].model == "b"


@pytest.mark.parametrize(
    ("ref", "check", "error", "words"),
    [
        ("broken", good_text, CorruptFile, "the checkpoint is truncated"),
        ("huge", good_text, InsufficientMemory, "are free (in use: a weights"),
        ("dies", good_text, EngineDead, "ended while it loaded the model: signal 9"),
        ("y", broken_text, CorruptFile, "the chat template is damaged"),
        ("slow", broken_text, CorruptFile, "the chat template is damaged"),
    ],
)
async def test_a_load_that_fails_leaves_nothing_behind(start, ref, check, error, words):
    client = await start("a=x")
    client.check_text = check
    loading = client.load(spec(f"b={ref}"))
    pid = await pid_once_started(client, "b")
    with pytest.raises(error) as caught:
        await loading
    assert words in str(caught.value)
    assert names(client) == ["a"] and not is_alive(pid)
    assert held(client, "b") == 0
    assert [model for model, _ in client.gone] == ["b"]
    client.check_text = good_text
    assert (await client.load(spec("b=y"))).model == "b"


async def test_a_model_that_failed_at_the_start_can_be_unloaded_or_loaded_again(start):
    client = await start()
    for name in "bc":
        client._supervisors[name] = client._supervisor(spec(f"{name}=broken"))
        client._supervisors[name].start()
    await until(lambda: {s.phase for s in client.statuses()} == {Phase.FAILED})
    await client.unload("b", 30)
    assert (await client.load(spec("c=y"))).model == "c"
    assert (names(client), [model for model, _ in client.gone]) == (["c"], ["b", "c"])


@pytest.mark.parametrize("ref", ["mute", "slow"])
async def test_unloading_ends_a_load_at_once(start, ref):
    client = await start("a=x")
    loading = client.load(spec(f"b={ref}"))
    pid = await pid_once_started(client, "b")
    await asyncio.wait_for(client.unload("b", 600), 60)
    with pytest.raises(ModelConflict, match="'b' was unloaded before it was loaded"):
        await loading
    assert names(client) == ["a"] and not is_alive(pid)
    assert held(client, "b") == 0


async def test_unloading_before_there_is_a_worker(start):
    client = await start("a=x")
    loading = client.load(spec("b=y"))
    await asyncio.wait_for(client.unload("b", 600), 60)
    with pytest.raises(ModelConflict):
        await loading
    assert names(client) == ["a"]
    await until(lambda: client._supervisors.get("b") is None)


async def test_unloading_during_the_check_of_its_text(start):
    client = await start("a=x")
    client.check_text = slow_text
    loading = client.load(spec("b=y"))
    await until(lambda: client._supervisors["b"].text_path is not None)
    await client.unload("b", 30)
    with pytest.raises(ModelConflict):
        await loading
    assert names(client) == ["a"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_worker_that_dies_or_stops_while_it_is_unloaded(start, number):
    client = await start("m=x")
    waiting = client.submit(request([3]))
    pid = pid_of(client, "m")
    unloading = client.unload("m", 0.1)
    os.kill(pid, number)
    with pytest.raises((EngineDead, ModelUnloading)):
        await collect(waiting)
    await asyncio.wait_for(unloading, 60)
    assert names(client) == [] and not is_alive(pid)
    assert client._arbiter.held("cpu") == 0


async def test_a_worker_that_is_restarting_can_be_unloaded(start):
    client = await start("m=x")
    os.kill(pid_of(client, "m"), signal.SIGKILL)
    await until(lambda: client.statuses()[0].restarts == 1)
    await asyncio.wait_for(client.unload("m", 600), 60)
    assert names(client) == []


async def test_one_loaded_on_demand_comes_back_after_its_worker_died(start):
    client = await start("a=x")
    await client.load(spec("b=y"))
    await restart(client, "b")
    assert held(client, "b") == 100


async def test_stopping_ends_loads_and_unloads_in_progress(start):
    client = await start("a=x")
    waiting = client.submit(request([3], model="a"))
    loading, unloading = client.load(spec("b=mute")), client.unload("a", 600)
    pids = [pid_of(client, "a"), await pid_once_started(client, "b")]
    await asyncio.wait_for(client.stop(0), 60)
    with pytest.raises(Draining):
        await loading
    await unloading
    with pytest.raises((EngineDead, ModelUnloading)):
        await collect(waiting)
    assert not any(map(is_alive, pids))
    for change in (lambda: client.load(spec("c=x")), lambda: client.unload("a", 0)):
        with pytest.raises(Draining):
            change()


async def test_memory_is_borrowed_while_requests_come(start):
    client = await start("m=x")
    asked = [client.submit(request([9, n], f"borrow {n}")) for n in (300, 700, 100)]
    between = client.submit(request([1, 5], "between"))
    assert [tokens_of(await collect(stream)) for stream in asked] == [[600], [0], [500]]
    assert tokens_of(await collect(between)) == [1, 5]
    assert held(client, "m") == 500
    await collect(client.submit(request([10], "back")))
    assert held(client, "m") == 400
    await restart(client)
    assert held(client, "m") == 100, "what a worker held ends with it"


async def test_a_model_forgets_the_request_that_had_it_loaded(start):
    client = await start("a=x")
    request_id = contextvars.ContextVar("request_id", default=None)
    seen = []
    client.steps.add(GENERATE, lambda model, stats, worker: seen.append((model, request_id.get())))
    request_id.set("of the load")
    await client.load(spec("b=y"))
    await collect(client.submit(request([1], model="b")))
    assert set(seen) == {("b", None)}


async def test_settings_that_do_not_fit_the_servers_start_nothing(start):
    client = await start("a=x")
    with pytest.raises(InvalidParameter):
        client.load(ModelSpec(ref="y", name="b", settings={"max_num_seqs": 0}))
    assert names(client) == ["a"]


async def test_random_comings_and_goings_leave_nothing_behind(start):
    """Concurrent loads and unloads of few names, refused or not, while one model answers."""
    client = await start("a=x")
    seen: set[str] = set()

    async def change():
        name, ref = random.choice("bcd"), random.choice(["y", "slow", "broken", "dies", "huge"])
        try:
            if random.random() < 0.5:
                await client.load(spec(f"{name}={ref}"))
                seen.add("loaded")
            else:
                await client.unload(name, random.choice([0, 1]))
                seen.add("unloaded")
        except (ModelConflict, UnknownModel, CorruptFile, EngineDead, InsufficientMemory) as error:
            seen.add(error.code)

    async def some_changes():
        for i in range(100):
            if i >= 5 and {"loaded", "unloaded", "model_conflict"} <= seen:
                return
            await change()
            await asyncio.sleep(0.1 * random.random())

    changes = asyncio.gather(*(some_changes() for _ in range(4)))
    num_answers = 0
    while not changes.done():
        answer = await collect(client.submit(request([1, 5], str(num_answers), "a")))
        assert tokens_of(answer) == [1, 5]
        num_answers += 1
        await asyncio.sleep(0.02)
    await changes
    assert num_answers > 0 and {"loaded", "unloaded", "model_conflict"} <= seen
    for name in names(client)[1:]:
        await client.unload(name, 0)
    assert names(client) == ["a"]
    assert client._arbiter.held("cpu") == held(client, "a") == 100
