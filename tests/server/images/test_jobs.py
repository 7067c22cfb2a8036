"""Progress and cancelling by id, clients that leave, limits of the queue, shutdown."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from tests.helpers.server.fake_engine import Failure
from tests.helpers.server.fake_images import image_info
from tests.helpers.server.fake_server import answer_of, error_of, until
from tests.helpers.server.image_server import GENERATIONS, ImageServer, named_events


async def started(server: ImageServer, **body: Any) -> tuple["asyncio.Task[Any]", str]:
    """A request that the engine has, and its id."""
    count = len(server.engine.requests)
    task = asyncio.create_task(server.generate(**body))
    await until(lambda: len(server.engine.requests) > count)
    return task, server.last.request_id


async def job(server: ImageServer, image_id: str) -> Any:
    return answer_of(await server.client.get(f"/v1/images/{image_id}"))


async def test_progress_from_the_queue_to_the_end(server: ImageServer) -> None:
    server.engine.hold()
    task, image_id = await started(server, n=2, num_inference_steps=5, seed=3)
    state = await job(server, image_id)
    assert (state["status"], state["progress"], state["queue_position"]) == ("queued", 0, 1)
    assert (state["step"], state["num_steps"], state["n"]) == (0, 10, 2)
    assert (state["model"], state["seed"], state["object"]) == ("painter", 3, "image.job")
    server.engine.step_s = 0.02
    server.engine.release()
    seen = []
    while not task.done():
        seen.append(await job(server, image_id))
        await asyncio.sleep(0.005)
    steps = [state["step"] for state in seen]
    assert steps == sorted(steps) and len(set(steps)) >= 3
    assert {state["status"] for state in seen} <= {"queued", "running", "completed"}
    state = await job(server, image_id)
    assert (state["status"], state["progress"], state["num_finished"]) == ("completed", 1, 2)
    assert state["queue_position"] is None
    assert (await task).status_code == 200


async def test_positions_follow_priority_then_arrival() -> None:
    server = ImageServer(engine={"scheduling_policy": "priority"})
    server.engine.hold()
    jobs = [await started(server, priority=priority) for priority in (0, 0, -1, 5, 0)]
    positions = [(await job(server, image_id))["queue_position"] for _, image_id in jobs]
    assert positions == [2, 3, 1, 5, 4]
    server.engine.release()
    assert {(await task).status_code for task, _ in jobs} == {200}


@pytest.mark.parametrize("stream", [False, True])
async def test_delete_cancels(server: ImageServer, stream: bool) -> None:
    server.engine.hold()
    task, image_id = await started(server, stream=stream)
    response = await server.client.delete(f"/v1/images/{image_id}")
    assert response.json()["status"] == "cancelled"
    assert server.engine.aborted == [image_id]
    answer = await asyncio.wait_for(task, 5)
    if answer.headers["content-type"].startswith("text/event-stream"):
        assert stream
        ((_, data),) = named_events(answer.text)
        assert data["error"]["code"] == "request_aborted"
    else:  # also for a stream of which nothing has been sent yet
        assert error_of(answer, 499)["code"] == "request_aborted"
    assert (await job(server, image_id))["status"] == "cancelled"
    assert server.state.admission.num_in_flight() == 0
    text = (await server.client.get("/metrics")).text
    assert 'tandem_image_images_total{model_name="painter",outcome="cancelled"} 1.0' in text


async def test_delete_after_the_end_changes_nothing(server: ImageServer) -> None:
    image_id = (await server.generate()).headers["X-Image-Id"]
    for _ in range(2):
        response = await server.client.delete(f"/v1/images/{image_id}")
        assert response.json()["status"] == "completed"
    assert server.engine.aborted == []


async def test_failed_jobs_say_why(server: ImageServer) -> None:
    server.engine.failure = Failure(after=1, code="over_capacity", message="out of memory")
    await server.generate()
    state = await job(server, server.last.request_id)
    assert (state["status"], state["error"]) == ("failed", "out of memory")
    server.engine.failure = Failure(after=1, code="internal_error", message="secret")
    await server.generate()
    state = await job(server, server.last.request_id)
    assert (state["status"], state["error"]) == ("failed", "internal error")


async def test_unknown_ids_are_a_404(server: ImageServer) -> None:
    for image_id in ("nope", "img-" + "0" * 32, "x" * 300, "%00", "é"):
        for method in ("GET", "DELETE"):
            response = await server.client.request(method, f"/v1/images/{image_id}")
            assert error_of(response, 404)["code"] in ("image_not_found", "not_found")


async def test_ids_cannot_be_guessed(server: ImageServer) -> None:
    ids = {(await server.generate()).headers["X-Image-Id"] for _ in range(8)}
    assert len(ids) == 8
    assert all(len(image_id) == len("img-") + 32 for image_id in ids)


async def test_ended_jobs_are_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.images.jobs.MAX_ENDED_JOBS", 2)
    server = ImageServer()
    ids = [(await server.generate()).headers["X-Image-Id"] for _ in range(4)]
    statuses = [(await server.client.get(f"/v1/images/{i}")).status_code for i in ids]
    assert statuses == [404, 404, 200, 200]
    monkeypatch.setattr("server.images.jobs.ENDED_JOB_TTL_S", -1.0)
    server = ImageServer()
    image_id = (await server.generate()).headers["X-Image-Id"]
    assert (await server.client.get(f"/v1/images/{image_id}")).status_code == 404


async def test_a_streams_id_comes_before_the_work(server: ImageServer) -> None:
    server.engine.hold()
    body = {"prompt": "x", "stream": True}
    async with (
        server.listening() as url,
        httpx.AsyncClient() as client,
        client.stream("POST", url + GENERATIONS, json=body) as response,
    ):
        image_id = response.headers["X-Image-Id"]
        assert (await client.get(f"{url}/v1/images/{image_id}")).json()["status"] == "queued"
        server.engine.release()
        lines = [line async for line in response.aiter_lines() if line.startswith("event:")]
    assert lines == ["event: image_generation.completed"]


async def test_the_queue_counts_images() -> None:
    server = ImageServer(max_queued_images=2, engine={"max_num_images": 3})
    server.engine.hold()
    first, _ = await started(server, n=4)
    refused = await server.generate(n=2)
    error = error_of(refused, 429)
    assert error["message"].startswith(
        "4 images are running or waiting and 2 more were asked for; "
        "the limit is 5 (3 running and 2 waiting)"
    )
    assert int(refused.headers["Retry-After"]) >= 1
    second, _ = await started(server, n=1)
    server.engine.release()
    assert (await first).status_code == (await second).status_code == 200
    server.engine.hold()
    alone, _ = await started(server, n=10)  # more than there are places, but alone
    server.engine.release()
    assert (await alone).status_code == 200


async def test_a_refused_request_is_refused_before_its_files_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = ImageServer(max_queued_images=0, engine={"max_num_images": 1})
    server.engine.hold()
    task, _ = await started(server)
    monkeypatch.setattr("server.operations.draw.read_inputs", None)
    error_of(await server.edit(), 429)
    server.engine.release()
    await task


async def test_limits_are_per_model() -> None:
    server = ImageServer(
        image_info("a"), image_info("b"), max_queued_images=0, engine={"max_num_images": 1}
    )
    server.engine.hold()
    first, _ = await started(server, model="a")
    second, _ = await started(server, model="b")
    error_of(await server.generate(model="a"), 429)
    server.engine.release()
    assert (await first).status_code == (await second).status_code == 200


async def test_nothing_is_left_behind(server: ImageServer) -> None:
    server.engine.failure = Failure(after=1)
    await server.generate(n=2)
    server.engine.failure = None
    await server.generate(size="bad")
    await server.generate(n=3, stream=True)
    await server.edit(mask=b"broken")
    state = server.state
    assert state.admission.num_in_flight() == 0
    assert not server.engine.live
    assert len(state.image_jobs._live) == 0


async def test_refused_requests_are_no_images(server: ImageServer) -> None:
    await server.generate()
    await server.generate(size="100000x8")
    await server.edit(b"broken")
    text = (await server.client.get("/metrics")).text
    counts = [line.split()[-1] for line in text.splitlines() if "image_images_total{" in line]
    assert sorted(counts) == ["0.0", "0.0", "1.0"]


async def test_prompts_stay_out_of_the_log(server: ImageServer, logs: list[Any]) -> None:
    await server.generate(prompt="my secret")
    assert "my secret" not in json.dumps(logs, default=str)
    server = ImageServer(log_prompts=True)
    await server.generate(prompt="my secret")
    assert "my secret" in json.dumps(logs, default=str)


@pytest.mark.parametrize("failure", [None, Failure(code="over_capacity", message="out of memory")])
async def test_a_job_has_ended_when_its_stream_has(
    server: ImageServer, failure: Failure | None
) -> None:
    server.engine.failure = failure
    async with server.listening() as url, httpx.AsyncClient(base_url=url) as client:
        body = {"prompt": "a red circle", "stream": True}
        async with client.stream("POST", GENERATIONS, json=body) as response:
            path = f"/v1/images/{response.headers['X-Image-Id']}"
            statuses = []
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    statuses.append((await client.get(path)).json()["status"])
    assert statuses == ["failed" if failure else "completed"]


async def test_a_file_that_cannot_be_written_fails_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(*args: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr("server.images.run.encode_image", encode)
    server = ImageServer()
    assert error_of(await server.generate(), 500)["code"] == "internal_error"
    assert (await job(server, server.last.request_id))["status"] == "failed"


@pytest.mark.parametrize("name", ["generations", "edits", "variations"])
async def test_a_route_asked_with_the_wrong_method_is_no_unknown_id(
    server: ImageServer, name: str
) -> None:
    for method in ("GET", "DELETE"):
        response = await server.client.request(method, f"/v1/images/{name}")
        assert error_of(response, 405)["code"] == "method_not_allowed"
        assert response.headers["Allow"] == "POST"
