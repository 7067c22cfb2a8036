"""Who gets memory for decoded pictures, when and in which order."""

import asyncio
import random

import pytest

from engine.errors import InvalidParameter
from server.images.picture_budget import PictureBudget, PictureShare


def waiting(budget: PictureBudget, model: str, num_bytes: int, priority: int = 0) -> "Taking":
    return asyncio.ensure_future(budget.take(model, num_bytes, priority))


Taking = asyncio.Future[PictureShare]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def budget() -> PictureBudget:
    return PictureBudget(100)


async def test_there_is_room_or_one_waits_for_it(budget: PictureBudget) -> None:
    first = await budget.take("a", 50)
    second = waiting(budget, "b", 60)
    await settle()
    assert not second.done()
    first.release()
    assert (await second, budget.num_taken) is not None and budget.num_taken == 60
    second.result().shrink(40)
    assert budget.num_taken == 40
    second.result().release()
    second.result().release()
    assert budget.num_taken == 0


async def test_what_never_fits_is_refused() -> None:
    with pytest.raises(InvalidParameter, match=r"101 bytes.*is 100 bytes .max_decoded_image_bytes"):
        await PictureBudget(100).take("a", 101)


async def test_one_models_requests_leave_half_to_others(budget: PictureBudget) -> None:
    held = [await budget.take("a", 25) for _ in range(2)]
    third = waiting(budget, "a", 25)
    await settle()
    assert not third.done()
    assert await asyncio.wait_for(budget.take("b", 50), 10)
    held.pop().release()
    assert await asyncio.wait_for(third, 10)


async def test_a_single_request_may_take_more_than_half_and_is_not_overtaken(
    budget: PictureBudget,
) -> None:
    held = await budget.take("a", 40)
    large = waiting(budget, "b", 90)
    await settle()
    later = waiting(budget, "c", 10)
    await settle()
    assert not large.done() and not later.done()
    held.release()
    share = await asyncio.wait_for(large, 10)
    assert await asyncio.wait_for(later, 10)
    share.release()


async def test_priority_then_arrival(budget: PictureBudget) -> None:
    held = await budget.take("a", 100)
    takings = [waiting(budget, "a", 100, priority) for priority in (1, 0, 1, -1)]
    order = []
    for _ in takings:
        await settle()
        held.release()
        await settle()
        [now] = [at for at, one in enumerate(takings) if one.done() and at not in order]
        order.append(now)
        held = takings[now].result()
    assert order == [3, 1, 0, 2]


async def test_whoever_has_left_holds_nothing(budget: PictureBudget) -> None:
    held = await budget.take("a", 100)
    gone, other = waiting(budget, "a", 100), waiting(budget, "a", 60)
    await settle()
    gone.cancel()
    await settle()
    held.release()
    assert await asyncio.wait_for(other, 10)
    other.result().release()


@pytest.mark.parametrize("is_first", [True, False])
async def test_whoever_leaves_as_there_is_room_holds_nothing(
    budget: PictureBudget, is_first: bool
) -> None:
    held = await budget.take("a", 100)
    gone = waiting(budget, "a", 100)
    await settle()
    if is_first:
        gone.cancel()
    held.release()
    gone.cancel()
    await settle()
    assert gone.cancelled() and budget.num_taken == 0


async def test_a_share_that_is_dropped_is_given_back(budget: PictureBudget) -> None:
    await budget.take("a", 100)
    assert budget.num_taken == 0


async def test_whatever_comes_and_goes_the_bound_holds_and_everybody_has_a_turn() -> None:
    most = random.randint(1, 1000)
    budget = PictureBudget(most)
    served = 0

    async def come_and_go() -> None:
        nonlocal served
        for _ in range(random.randrange(3)):
            await asyncio.sleep(0)
        share = await budget.take(
            random.choice("abc"), random.randint(1, most), random.randrange(3)
        )
        try:
            assert 0 < budget.num_taken <= most
            for _ in range(random.randrange(4)):
                await asyncio.sleep(0)
            served += 1
        finally:  # a cancelled task would keep its frame, and with it the share
            share.release()

    tasks = [asyncio.create_task(come_and_go()) for _ in range(200)]
    for task in random.sample(tasks, 40):
        await asyncio.sleep(0)
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(one) for one in ended} <= {type(None), asyncio.CancelledError}
    assert (served >= 160, budget.num_taken) == (True, 0)
