"""`then` of image requests: stages after the drawing, by other models."""

import asyncio
import json
import random
from typing import Any

import httpx
import numpy as np
import pytest

from engine.contract.draw import ImageTask
from engine.contract.operations import OPERATIONS
from engine.contract.pixels import Pixels
from tests.helpers.server.fake_engine import Failure
from tests.helpers.server.fake_images import cut, enlarged, image_info
from tests.helpers.server.fake_server import assert_refused, error_of, until
from tests.helpers.server.image_server import DIGEST, ChainServer, named_events, opened

ENLARGE = {"operation": "enlarge"}
MATTE = {"operation": "matte"}
MODELS = {"enlarge": "enlarger", "matte": "cutter"}
MADE_WITH = {"model": DIGEST[:16]}


@pytest.fixture
async def server() -> ChainServer:
    return ChainServer()


def pixels_of(answer: Any, number: int = 0) -> Any:
    return np.asarray(opened(answer["data"][number]["b64_json"]))


def expected(server: ChainServer, index: int = 0) -> Any:
    """What the stages' requests to the engine make of the drawn picture, computed from the last."""
    last = server.engine.requests_for("matte")[index]
    made = cut(last)
    return np.frombuffer(made.data, np.uint8).reshape(made.height, made.width, made.channels)


@pytest.mark.parametrize("stream", [False, True])
async def test_each_stage_works_on_the_result_of_the_one_before(
    server: ChainServer, stream: bool
) -> None:
    response = await server.chain(ENLARGE, MATTE, n=2, seed=3, stream=stream)
    assert response.status_code == 200, response.text
    drawn = [server.engine.draw(server.last, index) for index in range(2)]
    sent = sorted((request.image for request in server.engine.requests_for("enlarge")), key=key)
    assert sent == sorted(drawn, key=key)
    halfway = [enlarged(request) for request in server.engine.requests_for("enlarge")]
    assert [request.image for request in server.engine.requests_for("matte")] == halfway
    if stream:
        done = [data for name, data in named_events(response.text) if name.endswith("completed")]
        files = [data["b64_json"] for data in done]
        assert {data["background"] for data in done} == {"transparent"}
        assert [data["index"] for data in done] == [1, 0]  # as the fake engine finishes them
    else:
        body = response.json()
        assert (body["background"], body["size"]) == ("transparent", "128x128")
        files = [image["b64_json"] for image in reversed(body["data"])]
        assert "a warning" in body["warnings"]
    for number, file in enumerate(files):
        assert (np.asarray(opened(file)) == expected(server, number)).all()


def key(pixels: Pixels) -> bytes:
    return pixels.data


async def test_routes_with_input_images_take_chains_too(server: ChainServer) -> None:
    then = json.dumps([MATTE, {**ENLARGE, "scale": 1.5, "output_format": "webp"}])
    for response in (await server.edit(then=then), await server.vary(then=then)):
        assert response.status_code == 200, response.text
        image = opened(response.json()["data"][0]["b64_json"])
        assert (image.format, image.mode, image.size) == ("WEBP", "RGBA", (96, 72))


async def test_a_model_that_draws_enlarges_with_a_seed_of_its_own_for_each_picture() -> None:
    painter = image_info(tasks=(ImageTask.TEXT_TO_IMAGE,))
    restorer = image_info(
        "restorer", tasks=(ImageTask.RESTORE,), max_restored_pixels=1 << 20, digest=DIGEST
    )
    server = ChainServer(painter, restorer)
    stage = {**ENLARGE, "model": "restorer", "seed": 7, "scale": 2, "prompt": "a door"}
    body = (await server.chain(stage, model="painter", n=2)).json()
    requests = server.engine.requests_for("draw")[1:]
    assert sorted(request.params.seed for request in requests) == [7, 8]
    assert {request.prompt for request in requests} == {"a door"}
    assert pixels_of(body).shape == (128, 128, 3)
    (told,) = body["then"]
    assert told["seed"] == 7 and told["made_with"] == MADE_WITH
    again = await server.chain({**told, "seed": 8}, model="painter", seed=body["seed"] + 1)
    assert (pixels_of(again.json()) == pixels_of(body, 1)).all()


async def test_the_model_that_draws_may_also_enlarge_in_its_own_place() -> None:
    """With a single place, a second one for the same request would never come."""
    painter = image_info(max_restored_pixels=1 << 20)
    server = ChainServer(painter, engine={"max_num_images": 1}, max_queued_images=0)
    stage = {**ENLARGE, "model": "painter"}
    assert (await server.chain(stage, stage)).status_code == 200


async def test_progress_and_previews_name_their_stage(server: ChainServer) -> None:
    response = await server.chain(
        {**ENLARGE, "partial_images": 1}, MATTE, stream=True, partial_images=1
    )
    events = named_events(response.text)
    assert [name for name, _ in events].count("image_generation.completed") == 1
    assert events[-1][0] == "image_generation.completed"
    seen = [(data["operation"], data["stage"]) for _, data in events[:-1]]
    assert list(dict.fromkeys(seen)) == [("draw", 0), ("enlarge", 1), ("matte", 2)]
    assert seen == sorted(seen, key=lambda one: one[1])
    for stage in range(3):
        of_stage = [data for _, data in events[:-1] if data["stage"] == stage]
        shares = [data["progress"] for data in of_stage if "progress" in data]
        assert shares == sorted(set(shares)) and shares[-1] == 1
        assert sum("b64_json" in data for data in of_stage) == (1 if stage < 2 else 0)


async def test_a_file_holds_the_request_that_makes_it_again(server: ChainServer) -> None:
    stages = [{**ENLARGE, "scale": 1.5}, {**MATTE, "background_color": "#0f0"}]
    body = (await server.chain(*stages, n=2, seed=4)).json()
    told = json.loads(opened(body["data"][1]["b64_json"]).text["tandem"])
    assert [stage["operation"] for stage in told["then"]] == ["enlarge", "matte"]
    assert [stage["model"] for stage in told["then"]] == ["enlarger", "cutter"]
    assert all(stage["made_with"] == MADE_WITH for stage in told["then"])
    assert body["then"] == told["then"]
    again = (await server.generate(**told)).json()
    assert (pixels_of(again) == pixels_of(body, 1)).all()
    assert not any("made_with" in warning for warning in again["warnings"])
    assert opened(again["data"][0]["b64_json"]).text["tandem"] == json.dumps(told)


async def test_a_warning_says_that_the_weights_of_a_stage_have_changed(server: ChainServer) -> None:
    then = [{**one, "made_with": {"model": "f" * 16}} for one in (ENLARGE, MATTE)]
    warnings = (await server.chain(*then)).json()["warnings"]
    for model in MODELS.values():
        assert any("files of model" in text and model in text for text in warnings)


@pytest.mark.parametrize(
    ("then", "param", "words"),
    [
        ([{"operation": "draw"}], "then[0]", "enlarge or matte"),
        ([ENLARGE, {"operation": 3}], "then[1]", "enlarge or matte"),
        ([7], "then[0]", "enlarge or matte"),
        ([MATTE] * 5, "then", "at most 4"),
        ([MATTE, {**ENLARGE, "scale": 99}], "then[1].scale", "16"),
        ([MATTE, {**ENLARGE, "scale": 3}], "then[1].scale", "enlarges at most 2 times"),
        ([MATTE, {**ENLARGE, "scle": 2}], "then[1]", "no field 'scle'"),
        ([{**ENLARGE, "image": "x"}], "then[0]", "no field 'image'"),
        ([{**ENLARGE, "prompt": "x"}], "then[0].prompt", "models that draw"),
        ([{**ENLARGE, "exact": True, "overlap": 3}], "then[0].overlap", "exact"),
        ([{**ENLARGE, "tile": 2000}], "then[0].tile", "256"),
        ([{**ENLARGE, "partial_images": 1}], "then[0].partial_images", "stream"),
        ([{**MATTE, "output": "alpha"}, ENLARGE], "then[0].output", "last stage"),
        ([{**MATTE, "output_format": "png"}, ENLARGE], "then[0].output_format", "last stage"),
        ([{**MATTE, "output_format": "gif"}], "then[0].output_format", "png"),
        ([{**MATTE, "background_color": "red"}], "then[0].background_color", "#rgb"),
        ([ENLARGE, ENLARGE, ENLARGE, ENLARGE], "then[2].scale", "262144 pixels"),
        ([MATTE, {**ENLARGE, "model": "painter", "seed": 2**63 - 1}], "then[1].seed", "smaller"),
    ],
)
async def test_what_a_chain_cannot_do_is_refused_before_anything_is_drawn(
    then: list[Any], param: str, words: str
) -> None:
    server = ChainServer(max_upscaled_pixels=256 * 256)
    error = assert_refused(await server.chain(*then, n=2), param, words)
    assert error["message"].startswith(param.split(".")[0])
    assert not server.engine.requests_for("draw")


async def test_limits_count_the_pictures_between_the_stages() -> None:
    server = ChainServer(max_image_input_pixels=100 * 100)
    assert error_of(await server.chain(ENLARGE, MATTE))["param"] == "then[1]"
    assert (await server.chain(MATTE, ENLARGE)).status_code == 200
    server = ChainServer(max_decoded_image_bytes=4 * (64**2 + 128**2) - 1)
    assert_refused(await server.chain(ENLARGE), "then[0]", "max_decoded_image_bytes")


async def test_background_transparent_is_a_stage_of_its_own_without_then(
    server: ChainServer,
) -> None:
    response = await server.chain(ENLARGE, background="transparent")
    assert error_of(response)["param"] == "background"
    assert '"matte"' in error_of(response)["message"]


async def test_models_that_are_missing_are_named() -> None:
    server = ChainServer(image_info(), load_on_first_use=False)
    for then, place in (([ENLARGE], "then[0]"), ([{**MATTE, "model": "no"}], "then[0].model")):
        response = await server.chain(*then)
        assert response.status_code in (400, 404)
        assert response.json()["error"]["param"].startswith(place[:7])
        assert response.json()["error"]["message"].startswith("then[0]")
    assert not server.engine.requests_for("draw")


async def test_default_models_are_loaded_by_the_first_chain() -> None:
    server = ChainServer(image_info())
    body = (await server.chain(ENLARGE, MATTE)).json()
    assert [stage["model"] for stage in body["then"]] == ["realesrgan-x4plus", "u2netp"]


async def test_a_request_can_be_cancelled_while_a_model_is_loaded_for_it() -> None:
    server = ChainServer(image_info())
    server.engine.may_change.clear()
    task = asyncio.create_task(server.chain(MATTE))
    await until(lambda: bool(server.engine.specs))
    [live] = (await server.client.get("/v1/requests")).json()["data"]
    await server.client.delete(f"/v1/requests/{live['id']}")
    assert (await task).status_code == 499
    server.engine.may_change.set()
    assert (await server.chain(MATTE)).status_code == 200


async def test_a_full_stage_refuses_the_request_before_it_is_drawn(server: ChainServer) -> None:
    state = server.state
    limit = server.settings.engine.max_num_images + server.settings.max_queued_images
    lease = state.admission.admit(OPERATIONS["matte"], "cutter", limit)
    response = await server.chain(ENLARGE, MATTE)
    error = error_of(response, 429)
    assert error["message"].startswith("then[1]") and response.headers["retry-after"]
    assert not server.engine.requests_for("draw")
    lease.release()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("operation", ["draw", "enlarge", "matte"])
async def test_a_cancel_ends_the_stage_that_runs(
    server: ChainServer, operation: str, stream: bool
) -> None:
    server.engine.held = {MODELS.get(operation, "painter")}
    task = asyncio.create_task(server.chain(ENLARGE, MATTE, n=2, stream=stream))
    stage = ["draw", "enlarge", "matte"].index(operation)
    jobs = server.state.image_jobs
    await until(lambda: [job.stage for job in jobs.live()] == [stage])
    [live] = (await server.client.get("/v1/requests")).json()["data"]
    assert (live["operation"], live["stage"]) == (operation, stage)
    running = [request.request_id for request in server.engine.requests_for(operation)]
    job = (await server.client.get(f"/v1/images/{live['id']}")).json()
    assert job["stage"] == stage and (stage + bool(stage)) / 6 <= job["progress"] < 1
    route = random.choice(["/v1/requests", "/v1/images"])
    await server.client.delete(f"{route}/{live['id']}")
    response = await task
    # A stream's head waits a moment for the first event, so that an early error has its status.
    early = {499} if not stage or not stream else set()
    assert response.status_code in early | ({200} if stream else set())
    assert "cancelled" in response.text
    assert set(running) <= set(server.engine.aborted)
    counted = {"draw": "image_images", "enlarge": "upscale_images", "matte": "matting_images"}
    text = (await server.client.get("/metrics")).text
    model = MODELS.get(operation, "painter")
    name = f'tandem_{counted[operation]}_total{{model_name="{model}",outcome="cancelled"}}'
    assert f"{name} {1 if stage else 2}.0" in text
    server.engine.release()


@pytest.mark.parametrize("operation", ["enlarge", "matte"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_the_stage_that_runs(
    server: ChainServer, operation: str, stream: bool
) -> None:
    server.engine.held = {MODELS[operation]}
    async with server.listening() as url:
        async with httpx.AsyncClient(base_url=url) as client:
            body = {"prompt": "x", "then": [ENLARGE, MATTE], "stream": stream}
            task = asyncio.create_task(client.post("/v1/images/generations", json=body))
            await until(lambda: bool(server.engine.requests_for(operation)))
            [running] = [request.request_id for request in server.engine.requests_for(operation)]
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await until(lambda: running in server.engine.aborted)
        await until(lambda: not server.state.admission.num_requests)
        server.engine.release()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("stage", "operation"), [(0, "enlarge"), (1, "matte")])
async def test_a_failure_names_its_stage(
    server: ChainServer, stage: int, operation: str, stream: bool
) -> None:
    failure = Failure(code="invalid_value", message="too odd")
    server.engine.failing = {MODELS[operation]: failure}
    response = await server.chain(ENLARGE, MATTE, n=2, stream=stream)
    *_, last = named_events(response.text) if stream else [("", response.json())]
    error = last[1]["error"]
    assert error["param"] == f"then[{stage}]"
    assert error["message"] == f"then[{stage}]: too odd"


async def test_a_worker_that_dies_in_a_later_stage_fails_only_its_requests(
    server: ChainServer,
) -> None:
    server.engine.held = {"cutter"}
    task = asyncio.create_task(server.chain(ENLARGE, MATTE))
    await until(lambda: bool(server.engine.requests_for("matte")))
    server.engine.kill_worker("cutter")
    error = (await task).json()["error"]
    assert error["param"] == "then[1]"
    server.engine.release()
    assert (await server.chain(ENLARGE, MATTE)).status_code == 200


async def test_many_at_once_leave_nothing(server: ChainServer) -> None:
    limit = server.settings.engine.max_num_images + server.settings.max_queued_images
    bodies = [[ENLARGE, MATTE], [MATTE, ENLARGE], [MATTE], [ENLARGE]]
    then = [random.choice(bodies) for _ in range(min(16, limit))]
    answers = await asyncio.gather(*(server.chain(*one) for one in then))
    assert [answer.status_code for answer in answers] == [200] * len(then)


async def test_a_request_waits_for_room_between_its_stages_and_can_be_cancelled() -> None:
    server = ChainServer()
    between = server.state.pictures.between
    share = await between.take("other", server.settings.max_decoded_image_bytes)
    task = asyncio.create_task(server.chain(ENLARGE))
    await until(lambda: bool(between._waiting))
    image_id = server.last.request_id
    await server.client.delete(f"/v1/images/{image_id}")
    assert (await task).status_code == 499
    share.release()


async def test_a_picture_laid_over_a_colour_keeps_it_as_jpeg(server: ChainServer) -> None:
    stage = {**MATTE, "background_color": "#00ff00", "output_format": "jpeg"}
    body = (await server.chain(stage)).json()
    assert (body["background"], body["output_format"]) == ("opaque", "jpeg")
    red, green, blue = pixels_of(body)[32, 8].astype(int)
    assert green > 240 and red < 16 and blue < 16
