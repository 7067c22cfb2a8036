"""Places are counted exactly, whatever happens to the requests that hold them."""

import asyncio
import gc
import random

import pytest

from engine.contract.operations import DRAW, GENERATE
from engine.errors import Draining, QueueFull
from server.http.admission import Admission, Places
from server.http.lifecycle import Lifecycle


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lifecycle(clock):
    return Lifecycle(30.0, clock=clock)


def create(lifecycle, clock, *, running=2, queued=1):
    places = {
        GENERATE: Places(what="sequences", num_running=running, num_waiting=queued),
        DRAW: Places(what="images", num_running=1, num_waiting=0),
    }
    return Admission(lifecycle, lambda kind, model: places[kind], clock=clock)


async def test_the_limit_is_what_runs_plus_what_may_wait(lifecycle, clock):
    admission = create(lifecycle, clock)
    leases = [admission.admit(GENERATE, "m") for _ in range(3)]
    with pytest.raises(QueueFull) as caught:
        admission.admit(GENERATE, "m")
    assert caught.value.retry_after_s == 1
    assert "3" in caught.value.message
    leases.pop().release()
    leases.append(admission.admit(GENERATE, "m"))
    assert admission.num_in_flight("m") == 3


async def test_each_kind_has_limits_of_its_own(lifecycle, clock):
    admission = create(lifecycle, clock)
    held = [admission.admit(DRAW, "painter"), admission.admit(GENERATE, "m", 3)]
    with pytest.raises(QueueFull, match=r"^1 images .* the limit is 1 \(1 running and 0 waiting\)"):
        admission.admit(DRAW, "painter")
    with pytest.raises(
        QueueFull, match=r"^3 sequences .* the limit is 3 \(2 running and 1 waiting\)"
    ):
        admission.admit(GENERATE, "m")
    assert [lease.num_places for lease in held] == [1, 3]


async def test_models_do_not_share_places(lifecycle, clock):
    admission = create(lifecycle, clock)
    first = admission.admit(GENERATE, "a", 3)
    second = admission.admit(GENERATE, "b", 3)
    assert (admission.num_in_flight("a"), admission.num_in_flight()) == (3, 6)
    first.release()
    second.release()
    assert admission.num_in_flight() == 0


async def test_operations_of_a_model_do_not_share_places(lifecycle, clock):
    admission = create(lifecycle, clock)
    texts = admission.admit(GENERATE, "m", 3)
    image = admission.admit(DRAW, "m")
    assert admission.num_in_flight("m") == 4
    texts.release()
    with pytest.raises(QueueFull):
        admission.admit(DRAW, "m")
    assert admission.num_in_flight("m") == 1
    image.release()


@pytest.mark.parametrize(
    ("running", "queued", "share"), [(8, 1000, 16), (8, 8, 8), (2, 1, 1), (1, 0, 1), (5, 0, 2)]
)
async def test_the_share_of_one_request(lifecycle, clock, running, queued, share):
    admission = create(lifecycle, clock, running=running, queued=queued)
    assert admission.share(GENERATE, "m") == share


async def test_a_request_larger_than_the_limit_enters_alone(lifecycle, clock):
    admission = create(lifecycle, clock)
    small = admission.admit(GENERATE, "m")
    with pytest.raises(QueueFull):
        admission.admit(GENERATE, "m", 50)
    small.release()
    large = admission.admit(GENERATE, "m", 50)
    with pytest.raises(QueueFull):
        admission.admit(GENERATE, "m")
    large.release()
    assert admission.num_in_flight() == 0


async def test_no_queue_at_all(lifecycle, clock):
    admission = create(lifecycle, clock, running=1, queued=0)
    lease = admission.admit(GENERATE, "m")
    with pytest.raises(QueueFull):
        admission.admit(GENERATE, "m")
    lease.release()
    admission.admit(GENERATE, "m").release()


async def test_releasing_twice_counts_once(lifecycle, clock):
    admission = create(lifecycle, clock)
    other = admission.admit(GENERATE, "m")
    lease = admission.admit(GENERATE, "m")
    lease.release()
    lease.release()
    assert admission.num_in_flight("m") == 1
    other.release()


async def test_a_dropped_lease_gives_its_places_back(lifecycle, clock):
    admission = create(lifecycle, clock)

    async def stream(lease):
        yield b""
        lease.release()

    body = stream(admission.admit(GENERATE, "m"))  # a response that is never started
    assert admission.num_in_flight() == 1
    del body
    gc.collect()
    assert admission.num_in_flight() == 0


async def test_draining_refuses_with_the_time_that_is_left(lifecycle, clock):
    admission = create(lifecycle, clock)
    lease = admission.admit(GENERATE, "m")
    lifecycle.begin_drain()
    clock.now += 12.5
    with pytest.raises(Draining) as caught:
        admission.admit(GENERATE, "m")
    assert caught.value.retry_after_s == 18
    assert admission.num_in_flight() == 1
    lease.release()


async def test_retry_after_follows_the_recent_pace(lifecycle, clock):
    admission = create(lifecycle, clock, running=1, queued=9)
    for _ in range(4):
        lease = admission.admit(GENERATE, "m", 1)
        clock.now += 5.0
        lease.release()
        for _ in range(9):
            admission.admit(GENERATE, "another model").release()
    blocker = admission.admit(GENERATE, "m", 10)
    with pytest.raises(QueueFull) as caught:
        admission.admit(GENERATE, "m", 4)
    assert caught.value.retry_after_s == 15  # four ended in the 15 s since the first of them
    blocker.release()


async def test_retry_after_stays_within_a_minute_and_forgets_the_past(lifecycle, clock):
    admission = create(lifecycle, clock, running=1, queued=0)
    lease = admission.admit(GENERATE, "m")
    lease.release()
    clock.now += 59
    blocker = admission.admit(GENERATE, "m")
    with pytest.raises(QueueFull) as caught:
        admission.admit(GENERATE, "m", 100)
    assert caught.value.retry_after_s == 60
    clock.now += 1000
    with pytest.raises(QueueFull) as caught:
        admission.admit(GENERATE, "m")
    assert caught.value.retry_after_s == 1
    blocker.release()


async def test_random_traffic_leaves_nothing_behind(lifecycle, clock):
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    admission = create(lifecycle, clock, running=8, queued=8)
    held, num_refused = [], 0
    for _ in range(2000):
        clock.now += rng.random()
        if held and rng.random() < 0.5:
            held.pop(rng.randrange(len(held)))[1].release()
        else:
            num_sequences = rng.randrange(1, 5)
            try:
                held.append((num_sequences, admission.admit(GENERATE, "m", num_sequences)))
            except QueueFull as full:
                num_refused += 1
                assert 1 <= full.retry_after_s <= 60, f"seed {seed}"
        assert admission.num_in_flight("m") == sum(n for n, _ in held) <= 16, f"seed {seed}"
    assert num_refused > 0, f"seed {seed}"
    for _, lease in held:
        lease.release()
    assert admission.num_in_flight() == 0


async def test_work_that_follows_some_that_is_done_waits_for_places(lifecycle, clock):
    admission = create(lifecycle, clock)
    held = admission.admit(GENERATE, "m", 3)
    task = asyncio.create_task(admission.admit_later(GENERATE, "m", 2, patience_s=30.0))
    await asyncio.sleep(0.1)
    assert not task.done()
    held.release()
    lease = await task
    assert (lease.num_places, admission.num_in_flight("m")) == (2, 2)
    task = asyncio.create_task(admission.admit_later(GENERATE, "m", 2, patience_s=30.0))
    await asyncio.sleep(0.1)
    clock.now += 30.0
    with pytest.raises(QueueFull):
        await task
    lifecycle.begin_drain()
    with pytest.raises(Draining):
        await admission.admit_later(GENERATE, "m", 1, patience_s=30.0)
    lease.release()
