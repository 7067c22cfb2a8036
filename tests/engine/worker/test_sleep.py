"""More models than memory: real processes, a worker without a model, a budget of 1000 bytes."""

import asyncio
import contextlib
import os
import random
import signal
from itertools import pairwise

import pytest
import structlog

from engine.contract.model_spec import ModelSpec
from engine.contract.operations import GENERATE
from engine.contract.status import Phase
from engine.errors import (
    EngineDead,
    InsufficientMemory,
    ModelConflict,
    ModelNotReady,
    ModelUnloading,
)
from engine.worker import sleepers, slumber
from tests.helpers.worker.calls import (
    collect,
    is_alive,
    pid_of,
    process_of,
    request,
    tokens_of,
    until,
)

BUDGET = 1000


@pytest.fixture(autouse=True)
def pause(monkeypatch):
    """`pause(seconds)` sets the least time between two wakes of a model; at first it is short."""

    def set_pause(seconds):
        monkeypatch.setattr(slumber, "RELOAD_PAUSE_S", seconds)
        monkeypatch.setattr(slumber, "DOZE_PAUSE_S", seconds / 2)

    set_pause(0.01)
    return set_pause


@pytest.fixture
async def begin(start):
    """`begin("a=w400", "b=w700")`: a client whose models serve or sleep."""

    async def begin(*models, **config):
        client = await start(*models, wait=False, **{"sleep_file_gib": 0, **config})
        await until(lambda: settled(client))
        return client

    return begin


def settled(client):
    return all(s.phase in (Phase.READY, Phase.SLEEPING, Phase.FAILED) for s in client.statuses())


def awake(client):
    return {s.model for s in client.statuses() if s.phase is Phase.READY}


def held(client):
    return client._arbiter.held("cpu")


def num_wakes(client):
    return {s.model: s.num_wakes for s in client.statuses()}


async def ask(client, model, *tokens):
    """Ask a model, which echoes, and return what it says."""
    if model not in {info.model for info in client.models()}:
        await client.wake(model)
    ask.num += 1
    stream = client.submit(request([1, *tokens], f"r{ask.num}", model))
    return tokens_of(await asyncio.wait_for(collect(stream), 60))[1:]


ask.num = 0


async def test_models_that_do_not_fit_sleep_from_the_start_the_last_ones_first(begin):
    client = await begin("a=w300+200", "b=w600", "c=w400")
    assert "a" in awake(client) and "b" not in awake(client)
    assert 500 <= held(client) <= BUDGET
    [b] = [s for s in client.statuses() if s.model == "b"]
    assert (b.phase, b.failure) == (Phase.SLEEPING, None)
    assert (await client.wake("b")).model == "b"
    assert awake(client) == {"b"} | ({"c"} if held(client) == BUDGET else set())


async def test_a_request_wakes_its_model_and_those_unused_longest_make_room(begin):
    client = await begin("a=w400", "b=w400", "c=w300+100")
    await client.wake("c")
    await ask(client, "b", 5)
    await ask(client, "c", 6)
    before = num_wakes(client)
    assert awake(client) == {"b", "c"}, "a was first, but it was used less recently than b"
    assert {info.model for info in client.infos(GENERATE)} == {"a", "b", "c"}
    assert await ask(client, "a", 7, 8) == [7, 8]
    assert awake(client) == {"a", "c"}
    assert num_wakes(client) == {**before, "a": before["a"] + 1}
    assert held(client) == 800


async def test_as_many_sleep_as_it_takes_in_bytes(begin):
    client = await begin("a=w200", "b=w200", "c=w200", "d=w200", "e=w500")
    for model in "abcd":
        await ask(client, model, 1)
    await client.wake("e")
    assert awake(client) == {"c", "d", "e"}, "200 bytes were free, and 300 were missing"


async def test_a_small_model_stays_if_a_large_one_has_to_go(begin):
    client = await begin("a=w100", "b=w800", "c=w700")
    await ask(client, "a", 1)
    await ask(client, "b", 1)
    await client.wake("c")
    assert awake(client) == {"a", "c"}


async def test_nobody_sleeps_in_vain(begin):
    client = await begin("a=w300", '{"ref": "w300", "name": "b", "settings": {"pinned": true}}')
    with pytest.raises(InsufficientMemory, match=r"are free \(in use: . weights"):
        await client.load(ModelSpec.create("w800", name="c"))
    client.submit(request([3], "for ever", "a"))
    with pytest.raises(InsufficientMemory):
        await client.load(ModelSpec.create("w500", name="c"))
    assert awake(client) == {"a", "b"} and held(client) == 600


async def test_a_pinned_model_never_sleeps(begin):
    client = await begin("a=w600", "b=w600", pinned=False)
    client.pin("a", True)
    with pytest.raises(ModelConflict, match="pinned"):
        client.sleep("a")
    with pytest.raises(ModelNotReady, match="could not be woken: b needs"):
        await client.wake("b")
    client.keep_alive("a", 0)
    await asyncio.sleep(3 * sleepers._IDLE_PERIOD_S)
    assert awake(client) == {"a"}
    client.pin("a", False)
    await until(lambda: awake(client) == set())
    assert await ask(client, "b", 4) == [4]


async def test_a_pinned_model_gets_its_room_at_the_start(begin):
    client = await begin("a=w600", '{"ref": "w600", "name": "b", "settings": {"pinned": true}}')
    assert awake(client) == {"b"}


async def test_a_model_with_work_is_waited_for(begin):
    client = await begin("a=w600", "b=w600")
    running = client.submit(request([4, 7], "slow", "a"))
    assert await ask(client, "b", 9) == [9]
    assert tokens_of(await collect(running)) == [4, 7]
    assert awake(client) == {"b"}


async def test_steady_traffic_does_not_keep_others_asleep(begin, pause):
    client = await begin("a=w600", "b=w600")
    pause(0.3)
    answers = []

    async def keep_busy():
        while True:
            number = random.randrange(100)
            answers.append(await ask(client, "a", number) == [number])

    busy = [asyncio.create_task(keep_busy()) for _ in range(3)]
    running = client.submit(request([4, 4, 4], "slow", "a"))
    assert await ask(client, "b", 9) == [9]
    num_before = len(answers)
    await until(lambda: len(answers) > num_before + 3)
    for task in busy:
        task.cancel()
    await collect(running)
    assert all(answers)


async def test_cancelled_waiting_requests_leave_nothing(begin):
    client = await begin("a=w600", "b=w600")
    for i in range(3):
        await client.wake("b")
        await client.wake("a")
        streams = [client.submit(request([1], f"{i} {n}", "b", n=2)) for n in range(5)]
        for stream in streams[:4]:
            stream.end(1)
            await stream.aclose()
        streams[4].end(0)
        b = client._supervisors["b"]
        assert (len(b._streams), len(b.slumber.queue)) == (1, 1)
        await collect(streams[4])
        assert (len(b._streams), len(b.slumber.queue)) == (0, 0)
    client.submit(request([3], "for ever", "b"))
    waiting = client.submit(request([1], "waits", "a"))
    waking = asyncio.create_task(client.wake("a"))
    await asyncio.sleep(0.1)
    await waiting.aclose()
    waking.cancel()
    await until(lambda: not client._sleepers._wakes)
    assert not client._supervisors["a"].slumber.is_wanted
    assert process_of(client, "a") is None


async def test_a_request_waits_for_a_limited_time(begin):
    client = await begin("a=w600", "b=w600", wake_timeout_s=0.3)
    client.submit(request([3], "for ever", "a"))
    with pytest.raises(ModelNotReady, match=r"'b' sleeps and has not woken within 0\.3 s") as late:
        await client.wake("b")
    assert late.value.retry_after_s is not None
    b = client._supervisors["b"]
    b.info = client._supervisors["a"].info  # as if it had served before
    with pytest.raises(ModelNotReady, match="has not woken"):
        await collect(client.submit(request([1], "late", "b")))
    assert (len(b._streams), len(b.slumber.queue)) == (0, 0)
    await until(lambda: not client._sleepers._wakes)
    assert awake(client) == {"a"}


async def test_a_model_that_cannot_be_loaded_again_says_why_and_disturbs_nobody(begin, tmp_path):
    client = await begin("a=w600", f"b=once-{tmp_path / 'mark'}")
    await client.sleep("b")
    before = pid_of(client, "a")
    waiting = [client.submit(request([i], str(i), "b")) for i in range(3)]
    for stream in waiting:
        with pytest.raises(ModelNotReady, match="could not be woken: the checkpoint is truncated"):
            await collect(stream)
    [_, b] = client.statuses()
    assert (b.phase, b.failure.code, b.waking) == (Phase.SLEEPING, "corrupt_file", False)
    assert (awake(client), pid_of(client, "a"), held(client)) == ({"a"}, before, 600)
    (tmp_path / "mark").unlink()
    assert await ask(client, "b", 6) == [6], "the next request tries again"
    assert client.statuses()[1].failure is None


async def test_a_worker_that_dies_while_it_wakes(begin):
    client = await begin("a=slow")
    await client.sleep("a")
    waiting = client.submit(request([1], "r", "a"))
    await until(lambda: process_of(client, "a") is not None)
    os.kill(pid_of(client, "a"), signal.SIGKILL)
    with pytest.raises(ModelNotReady, match="could not be woken: the worker of model 'a' ended"):
        await collect(waiting)
    assert held(client) == 0
    assert await ask(client, "a", 6) == [6]


async def test_idle_models_sleep(begin):
    client = await begin(
        "a=w100", '{"ref": "w100", "name": "b", "settings": {"sleep_idle_seconds": 0.2}}'
    )
    client.keep_alive("a", 0.1)
    running = client.submit(request([4, 7], "slow", "a"))
    assert tokens_of(await collect(running)) == [4, 7]
    await until(lambda: awake(client) == set() and held(client) == 0)
    assert [status.sleep_after_s for status in client.statuses()] == [None, 0.2]
    client.keep_alive("b", None)
    assert (await ask(client, "a", 2), await ask(client, "b", 3)) == ([2], [3])
    await until(lambda: awake(client) == {"a"})


async def test_two_that_wake_at_once_take_no_memory_from_each_other(begin):
    """A process takes a while to ask for its memory, and the other might start meanwhile."""
    client = await begin("a=w300+400", "b=w300+400")
    await client.wake("a")
    await client.wake("b")
    await asyncio.gather(client.sleep("a"), client.sleep("b"))
    before, num_most = num_wakes(client), 0
    asking = [asyncio.create_task(ask(client, model, 5)) for model in "ab"]
    while not all(one.done() for one in asking):
        num_most = max(num_most, sum(process_of(client, m) is not None for m in "ab"))
        await asyncio.sleep(0.001)
    assert [one.result() for one in asking] == [[5], [5]]
    assert num_most == 1, "no worker is started that would have to wait"
    assert num_wakes(client) == {model: before[model] + 1 for model in "ab"}


async def test_a_worker_that_loads_and_gives_way_has_not_failed(begin):
    client = await begin("a=slow")
    await client.sleep("a")
    waking = asyncio.create_task(client.wake("a"))
    await until(lambda: process_of(client, "a") is not None)
    with structlog.testing.capture_logs() as logs:
        await client._supervisors["a"].fall_asleep()
    assert [line for line in logs if line["log_level"] == "error"] == []
    waking.cancel()


async def test_a_wake_from_a_doze_is_no_load(begin, pause):
    client = await begin("a=w100", sleep_file_gib=2)
    pause(60)
    await client.sleep("a")
    await client.wake("a")
    await client.sleep("a", deep=True)
    assert await asyncio.wait_for(ask(client, "a", 5), 30) == [5]


async def test_sleep_waits_for_what_runs_and_later_requests_wake_it(begin):
    client = await begin("a=w100")
    running, pid = client.submit(request([4, 7], "slow", "a")), pid_of(client, "a")
    sleeping = client.sleep("a")
    await asyncio.sleep(0)
    later = client.submit(request([1, 8], "later", "a"))
    assert tokens_of(await collect(running)) == [4, 7]
    await sleeping
    assert not is_alive(pid)
    assert tokens_of(await collect(later)) == [1, 8]
    assert num_wakes(client) == {"a": 1}


async def test_a_model_wakes_at_most_once_in_a_pause(begin, pause):
    client = await begin("a=w600", "b=w600")
    await client.wake("b")
    pause(2.0)  # far longer than a worker takes to start
    wakes = {model: [] for model in "ab"}

    async def attack(model):
        while min(map(len, wakes.values())) < 2:
            assert await ask(client, model, 5) == [5]
            woken_s = client._supervisors[model].slumber._woken_s
            if woken_s is not None and woken_s not in wakes[model]:
                wakes[model].append(woken_s)
            await asyncio.sleep(0.01)

    await asyncio.gather(*(attack(model) for model in "ab" for _ in range(2)))
    for times in wakes.values():
        assert all(after - before >= 2.0 for before, after in pairwise(times))


@pytest.mark.parametrize("stops", [False, True])
async def test_unloading_or_stopping_ends_what_waits_for_a_waking_model(begin, stops):
    client = await begin("a=w100", "b=slow")
    await client.sleep("b")
    waiting = client.submit(request([1], "r", "b"))
    waking = asyncio.create_task(client.wake("b"))
    await until(lambda: process_of(client, "b") is not None)
    pid = pid_of(client, "b")
    await asyncio.wait_for(client.stop(0) if stops else client.unload("b", 600), 60)
    with pytest.raises((EngineDead, ModelUnloading)):
        await collect(waiting)
    with pytest.raises((ModelUnloading, ModelNotReady, asyncio.CancelledError)):
        await waking
    assert not is_alive(pid) and len(client._supervisors["a"]._streams) == 0


async def test_a_sleeping_model_can_be_unloaded(begin):
    client = await begin("a=w600", "b=w600")
    await asyncio.wait_for(client.unload("b", 600), 60)
    assert [s.model for s in client.statuses()] == ["a"]


def dozing(client):
    """The models that doze, with what their processes hold."""
    supervisors = client._supervisors.items()
    return {m: client._arbiter.held("cpu", m) for m, s in supervisors if s.slumber.is_dozing}


async def test_a_model_that_dozes_keeps_its_worker(begin):
    client = await begin("a=w300+100", "b=w200", sleep_file_gib=2)
    before = pid_of(client, "a"), client._arbiter.held_by("a")
    await client.sleep("a")
    assert (dozing(client), held(client)) == ({"a": 100}, 300)
    waiting = client.submit(request([1, 7, 8], "waits", "a"))
    assert tokens_of(await collect(waiting)) == [1, 7, 8]
    assert (pid_of(client, "a"), client._arbiter.held_by("a")) == before
    assert num_wakes(client) == {"a": 1, "b": 0}
    await client.sleep("a", deep=True)
    assert (dozing(client), process_of(client, "a"), held(client)) == ({}, None, 200)


async def test_those_that_doze_make_room_first_and_their_files_have_a_limit(begin):
    client = await begin("a=w200", "b=w200", "c=w500", "d=w400", sleep_file_gib=2.5)
    assert awake(client) == {"a", "b", "c"}
    await client.sleep("d", deep=True)  # it may have been ready before it had to make room
    for model in "abc":
        await client.sleep(model)
    assert dozing(client) == {"a": 100, "b": 100}, "the third file would be beyond the limit"
    await client.wake("d")
    await client.wake("c")
    assert awake(client) == {"c", "d"} and len(dozing(client)) == 1
    assert await ask(client, "a", 5) == await ask(client, "b", 5) == [5]
    assert awake(client) == {"a", "b"} or held(client) >= 900


async def test_a_model_cannot_doze_if_its_process_has_no_room(begin):
    client = await begin("a=w50", "b=w950", sleep_file_gib=2)
    await client.sleep("a")
    assert (dozing(client), process_of(client, "a"), held(client)) == ({}, None, 950)


@pytest.mark.parametrize("dies_at", ["once", "wake"])
async def test_a_model_whose_dozing_worker_dies_is_loaded_again(begin, tmp_path, dies_at):
    client = await begin("a=w300", sleep_file_gib=2)
    await client.sleep("a")
    pid = pid_of(client, "a")
    if dies_at == "once":
        os.kill(pid, signal.SIGKILL)
        await until(lambda: client._supervisors["a"].has_ended)
        assert (awake(client), held(client)) == (set(), 0)
    else:
        (tmp_path / "dies").touch()
    assert await ask(client, "a", 6) == [6]
    assert pid_of(client, "a") != pid and held(client) == 300


@pytest.mark.parametrize("stops", [False, True])
async def test_a_dozing_model_can_be_unloaded_and_stopped(begin, stops):
    client = await begin("a=w300", "b=w300", sleep_file_gib=2)
    await client.sleep("b")
    pid = pid_of(client, "b")
    waiting = client.submit(request([1], "r", "b"))
    await asyncio.wait_for(client.stop(0) if stops else client.unload("b", 0), 60)
    with contextlib.suppress(EngineDead, ModelUnloading):
        await collect(waiting)
    assert not is_alive(pid) and client._arbiter.held("cpu", "b") == 0


@pytest.mark.slow
@pytest.mark.parametrize("file_gib", [0, 2.5])
async def test_random_traffic_loses_nothing_and_stays_within_the_budget(begin, pause, file_gib):
    client = await begin("a=w500", "b=w300+100", "c=w400", "d=w600", sleep_file_gib=file_gib)
    for model in "abcd":
        await client.wake(model)
    pause(0.2)
    rng, counts = random.Random(), dict.fromkeys("abcd", 0)
    wakes_before = sum(num_wakes(client).values())

    def is_over():
        return min(counts.values()) >= 2 and sum(num_wakes(client).values()) >= wakes_before + 4

    async def user():
        while not is_over():
            model, tokens = rng.choice("abcd"), [rng.randrange(100) for _ in range(3)]
            asking = asyncio.create_task(ask(client, model, *tokens))
            if rng.random() < 0.2:
                await asyncio.sleep(rng.random() * 0.3)
                asking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asking
            else:
                assert await asking == tokens
                counts[model] += 1

    async def watch():
        while not is_over():
            assert held(client) <= BUDGET
            await asyncio.sleep(0.005)

    async with asyncio.timeout(300):
        await asyncio.gather(watch(), *(user() for _ in range(6)))
    await until(lambda: not any(s.slumber.is_wanted for s in client._supervisors.values()))
