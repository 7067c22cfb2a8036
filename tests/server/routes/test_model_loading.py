"""`GET /models`, `POST /models/load`, `POST /models/unload`, over a scripted engine."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.contract.generate import ModelInfo
from engine.contract.status import Phase
from engine.errors import (
    CorruptFile,
    EngineDead,
    EngineError,
    InsufficientMemory,
    ModelNotFound,
)
from tests.helpers.server.fake_images import image_info
from tests.helpers.server.fake_server import answer_of, error_of, until
from tests.helpers.server.image_server import ImageServer
from tests.helpers.server.text_server import MODEL, TextServer, events_of, text_info

Start = Callable[..., TextServer]


@pytest.fixture(autouse=True)
def shared_template_processes() -> None:
    """Have each app start and end processes of its own."""


@pytest.fixture
def start(tokenizer_folder: Path) -> Start:
    def start(**settings: Any) -> TextServer:
        given = {
            "models": [f"{MODEL}=/served"],
            "loadable_models": [
                "small=org/small",
                '{"ref": "org/large", "name": "large", "settings": {"max_num_seqs": 2}}',
            ],
            "enable_runtime_loading": True,
        }
        server = TextServer(tokenizer_folder, **{**given, **settings})
        server.engine.make_info = lambda spec: text_info(tokenizer_folder, spec.name)
        return server

    return start


@pytest.fixture
async def server(start: Start) -> TextServer:
    return start()


async def load(server: TextServer, model: str = "small", **fields: Any) -> httpx.Response:
    return await server.post("/models/load", model=model, **fields)


async def unload(server: TextServer, model: str = "small", **fields: Any) -> httpx.Response:
    return await server.post("/models/unload", model=model, **fields)


async def cards(server: TextServer) -> dict[str, dict[str, Any]]:
    answer = (await server.client.get("/models")).json()
    assert answer["object"] == "list"
    return {card["id"]: card for card in answer["data"]}


async def served(server: TextServer) -> list[str]:
    return [card["id"] for card in (await server.client.get("/v1/models")).json()["data"]]


def is_in(server: TextServer, phase: Phase) -> bool:
    """Whether `small` is in that phase."""
    return ("small", phase) in [(s.model, s.phase) for s in server.engine.statuses()]


async def test_the_list_says_what_is_there_and_what_may_be_loaded(server: TextServer) -> None:
    found = await cards(server)
    assert list(found) == [MODEL, "small", "large"]
    assert found[MODEL]["status"] == {
        "value": "loaded",
        "failed": False,
        "pinned": False,
        "phase": "ready",
        "progress": None,
        "detail": None,
        "error_code": None,
    }
    assert found["small"]["status"]["value"] == "unloaded"
    assert found["large"]["settings"] == {"max_num_seqs": 2}
    assert all(card["loadable"] for card in found.values())
    assert "/served" not in str(found) and "org/" not in str(found["small"])


async def test_a_model_is_loaded_asked_and_unloaded(server: TextServer) -> None:
    body = answer_of(await load(server))
    assert (body["success"], body["model"], body["status"]["value"]) == (True, "small", "loaded")
    assert await served(server) == [MODEL, "small"]
    assert (await server.chat(model="small")).status_code == 200
    assert 'model_name="small"' in (await server.client.get("/metrics")).text

    body = answer_of(await unload(server))
    assert (body["success"], body["model"], body["status"]["value"]) == (True, "small", "unloaded")
    assert await served(server) == [MODEL]
    assert (await cards(server))["small"]["status"]["value"] == "unloaded"
    error_of(await server.chat(model="small"), 404)
    assert 'model_name="small"' not in (await server.client.get("/metrics")).text
    assert (await load(server)).status_code == 200, "and again"


async def test_who_does_not_wait_asks_for_the_state(server: TextServer) -> None:
    server.engine.may_change.clear()
    response = await load(server, wait=False)
    assert (response.status_code, response.json()["status"]["value"]) == (202, "loading")
    status = (await cards(server))["small"]["status"]
    assert (status["value"], status["phase"], status["progress"]) == ("loading", "loading", 0.5)
    server.engine.may_change.set()
    await until(lambda: "small" in server.engine.served)
    assert (await cards(server))["small"]["status"]["value"] == "loaded"

    server.engine.may_change.clear()
    response = await unload(server, wait=False)
    assert (response.status_code, response.json()["status"]["value"]) == (202, "unloading")
    server.engine.may_change.set()
    await until(lambda: "small" not in server.engine.served)


async def test_others_are_served_and_the_server_stays_ready_meanwhile(server: TextServer) -> None:
    server.engine.may_change.clear()
    for change in (load, unload):
        phase = Phase.LOADING if change is load else Phase.DRAINING
        task = asyncio.create_task(change(server))
        await until(lambda phase=phase: is_in(server, phase))  # type: ignore[misc]
        assert (await server.client.get("/ready")).status_code == 200
        assert (await server.chat()).status_code == 200, "the only one is meant without a name"
        response = await server.chat(model="small")
        error = error_of(response, 503)
        if change is load:
            assert error["code"] == "model_not_ready"
        else:
            assert error["code"] == "model_unloading"
            assert "is being unloaded" in error["message"]
        server.engine.may_change.set()
        assert (await task).status_code == 200
        server.engine.may_change.clear()


async def test_a_stream_of_another_model_goes_on(server: TextServer) -> None:
    server.engine.hold()
    streaming = asyncio.create_task(server.chat(stream=True, max_tokens=8))
    await until(lambda: bool(server.engine.live))
    assert (await load(server)).status_code == 200
    server.engine.release()
    assert len(events_of(await streaming)) > 2
    answer_of(await server.chat(stream=False, max_tokens=8, model=MODEL))


async def test_running_requests_may_finish_before_a_model_is_gone(server: TextServer) -> None:
    await load(server)
    server.engine.hold()
    asking = asyncio.create_task(server.chat(model="small", max_tokens=4))
    await until(lambda: bool(server.engine.live))
    unloading = asyncio.create_task(unload(server))
    await until(lambda: server.engine._statuses["small"].phase is Phase.DRAINING)
    assert "small" not in await served(server)
    server.engine.release()
    assert (await asking).status_code == 200
    assert (await unloading).status_code == 200


async def test_the_time_for_that_can_be_given(start: Start) -> None:
    server = start(drain_timeout_s=60)
    await load(server)
    server.engine.hold()
    asking = asyncio.create_task(server.chat(model="small", max_tokens=4))
    await until(lambda: bool(server.engine.live))
    answer_of(await asyncio.wait_for(unload(server, drain_timeout_s=0.05), 60))
    error_of(await asking, 503)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ModelNotFound("there is no such repository"), 404),
        (CorruptFile("the file is cut off"), 400),
        (InsufficientMemory("small asks for 9 MiB, 3 MiB are free"), 503),
        (EngineDead("the worker ended while it loaded the model: signal 9"), 503),
    ],
)
async def test_a_load_that_fails_says_why(
    server: TextServer, error: EngineError, status: int
) -> None:
    server.engine.load_error = error
    answer = error_of(await load(server), status)
    assert (answer["message"], answer["code"]) == (error.message, error.code)
    assert await served(server) == [MODEL]
    assert [s.model for s in server.engine.statuses()] == [MODEL]
    shown = (await cards(server))["small"]["status"]
    assert (shown["value"], shown["failed"]) == ("unloaded", True)
    assert (shown["detail"], shown["error_code"]) == (error.message, error.code)
    server.engine.load_error = None
    assert (await load(server)).status_code == 200
    assert (await cards(server))["small"]["status"]["failed"] is False


async def test_a_failure_that_nobody_waited_for_is_shown(server: TextServer) -> None:
    server.engine.load_error = CorruptFile("the file is cut off", param=None)
    server.engine.load_error.hint = "at /a/secret/place"
    assert (await load(server, wait=False)).status_code == 202
    await until(lambda: "small" not in server.engine._statuses)
    found = (await server.client.get("/models")).text
    assert "the file is cut off" in found and "secret" not in found


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"model": "nowhere"}, 404, "model_not_found", "model"),
        ({"model": "/etc/passwd"}, 404, "model_not_found", "model"),
        ({"model": "new", "ref": "/etc/passwd"}, 404, "model_not_found", "ref"),
        ({"model": MODEL}, 409, "model_conflict", "model"),
        ({"model": "small", "settings": {"max_num_sqs": 1}}, 400, "invalid_value", "max_num_sqs"),
        ({"model": "small", "settings": {"max_num_seqs": 0}}, 400, "invalid_value", "max_num_seqs"),
        ({"model": "small", "settings": {"image_share": 1}}, 400, "invalid_value", "image_share"),
        ({"model": "small", "device": "tpu"}, 400, "invalid_value", "device"),
        ({"model": "small", "setings": {}}, 400, "invalid_value", "setings"),
        ({"model": ""}, 400, "invalid_value", "model"),
        ({"model": "n" * 300, "ref": "small"}, 400, "invalid_value", "model"),
        ({}, 400, "invalid_value", "model"),
        ({"model": "small", "wait": "no"}, 400, "invalid_value", "wait"),
        (
            {"model": "small", "settings": {str(i): i for i in range(65)}},
            400,
            "invalid_value",
            "settings",
        ),
    ],
)
async def test_what_cannot_be_loaded_is_refused_at_once(
    server: TextServer, body: dict[str, Any], status: int, code: str, param: str
) -> None:
    error = error_of(await server.post("/models/load", **body), status)
    assert (error["code"], error["param"]) == (code, param)
    assert not server.engine.specs


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "small"}, 404, "model_not_found"),
        ({"model": MODEL, "drain_timeout_s": -1}, 400, "invalid_value"),
        ({"model": MODEL, "force": True}, 400, "invalid_value"),
        ({}, 400, "invalid_value"),
    ],
)
async def test_what_cannot_be_unloaded(
    server: TextServer, body: dict[str, Any], status: int, code: str
) -> None:
    assert error_of(await server.post("/models/unload", **body), status)["code"] == code
    assert await served(server) == [MODEL]


async def test_two_at_once(server: TextServer) -> None:
    for change in (load, unload):
        server.engine.may_change.clear()
        first = asyncio.create_task(change(server))
        phase = Phase.LOADING if change is load else Phase.DRAINING
        await until(lambda phase=phase: is_in(server, phase))  # type: ignore[misc]
        assert error_of(await change(server), 409)["code"] == "model_conflict"
        server.engine.may_change.set()
        assert (await first).status_code == 200


async def test_settings_of_the_operator_and_of_the_request(start: Start) -> None:
    server = start(engine={"max_num_seqs": 7})
    await load(server, "large", settings={"seed": 5}, device="cpu")
    spec = server.engine.specs["large"]
    assert (spec.ref, spec.device) == ("org/large", "cpu")
    assert (spec.settings["max_num_seqs"], spec.settings["seed"]) == (2, 5)
    assert spec.settings["max_num_queued"] >= 1024 + 2, "whatever admission lets in"
    assert (await cards(server))["large"]["settings"] == {
        "device": "cpu",
        "max_num_seqs": 2,
        "seed": 5,
    }
    assert (await cards(server))[MODEL]["settings"] == {}


async def test_files_of_the_machine_are_named_by_its_operator_alone(start: Start) -> None:
    own = '{"ref": "org/tuned", "name": "tuned", "settings": {"lora": ["poet=/secret/poet"]}}'
    server = start(loadable_models=[own, "small=org/small"], engine={"lora": ["a=/secret/a"]})
    refused = error_of(await load(server, settings={"lora": ["x=/etc"]}), 400)
    assert refused["param"] == "lora"
    assert (await load(server, "tuned")).status_code == 200
    assert server.engine.specs["tuned"].settings["lora"] == ("poet=/secret/poet",)
    assert "secret" not in (await server.client.get("/models")).text


async def test_one_checkpoint_under_another_name(server: TextServer) -> None:
    for ref in ("small", "org/small"):
        assert (await load(server, f"copy of {ref}", ref=ref)).status_code == 200
        assert server.engine.specs[f"copy of {ref}"].ref == "org/small"


async def test_a_models_own_limits_are_those_of_admission(start: Start) -> None:
    server = start(max_queued_requests=0)
    await load(server, "large")
    server.engine.hold()
    asking = [asyncio.create_task(server.chat(model="large", max_tokens=2)) for _ in range(2)]
    await until(lambda: len(server.engine.live) == 2)
    error = error_of(await server.chat(model="large"), 429)
    assert "the limit is 2 (2 running and 0 waiting)" in error["message"]
    other = asyncio.create_task(server.chat(model=MODEL, max_tokens=2))
    await until(lambda: len(server.engine.live) == 3)
    server.engine.release()
    assert [(await task).status_code for task in (*asking, other)] == [200, 200, 200]


async def test_a_models_own_policy_decides_whether_priorities_act(server: TextServer) -> None:
    await load(server, settings={"scheduling_policy": "priority"})
    assert (await server.chat(model="small", priority=3)).status_code == 200
    assert error_of(await server.chat(model=MODEL, priority=3), 400)["param"] == "priority"


async def test_only_so_many_models(start: Start) -> None:
    server = start(models_max=2)
    assert (await load(server)).status_code == 200
    error = error_of(await load(server, "large"), 409)
    assert error["code"] == "too_many_models"
    assert "models_max is 2" in error["message"] and "small" in error["message"]
    await unload(server)
    assert (await load(server, "large")).status_code == 200


async def test_it_is_off_unless_the_operator_wants_it(start: Start) -> None:
    server = start(enable_runtime_loading=False, loadable_models=[])
    for change in (load, unload):
        error = error_of(await change(server, MODEL), 403)
        assert error["code"] == "not_allowed"
        assert "--enable-runtime-loading" in error["message"]
    assert list(await cards(server)) == [MODEL]
    assert await served(server) == [MODEL]


async def test_a_server_that_drains_changes_nothing_any_more(server: TextServer) -> None:
    server.state.lifecycle.begin_drain()
    for response in (await load(server), await unload(server, MODEL)):
        assert error_of(response, 503)["code"] == "draining"
    assert not server.engine.specs and server.engine.statuses()[0].phase is Phase.READY


@pytest.mark.parametrize("api_keys", [(), ("plain",)])
async def test_admin_keys_are_for_changes_only(start: Start, api_keys: tuple[str, ...]) -> None:
    server = start(api_keys=api_keys, admin_keys=("boss", "other"))

    async def send(key: str | None, path: str = "/models/load") -> int:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        post = server.client.post(path, json={"model": "small"}, headers=headers)
        return (await post).status_code

    without = 401 if api_keys else 403
    assert await send(None) == without
    assert await send("plain") == 403
    assert await send("nonsense") == without
    assert not server.engine.specs
    assert await send("boss") == 200
    assert await send("plain", "/models/unload") == 403
    headers = {"X-Api-Key": "other"}
    assert (await server.client.get("/models", headers=headers)).status_code == 200
    answer_of(await server.client.post("/models/unload", json={"model": "small"}, headers=headers))
    assert (await server.client.get("/models")).status_code == (401 if api_keys else 200)


async def test_api_keys_suffice_where_there_are_no_admin_keys(start: Start) -> None:
    server = start(api_keys=("plain",))
    assert (await load(server)).status_code == 401
    server.client.headers["Authorization"] = "Bearer plain"
    assert (await load(server)).status_code == 200


async def test_a_web_page_cannot_post_to_it(server: TextServer) -> None:
    response = await server.client.post("/models/unload", content=f'{{"model": "{MODEL}"}}')
    assert response.status_code == 415
    assert await served(server) == [MODEL]


@pytest.mark.usefixtures("unkept_templates")
async def test_the_text_side_of_a_model_that_is_gone_is_closed(
    server: TextServer, tokenizer_folder: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tokenizer_folder, elsewhere)
    server.engine.make_info = lambda spec: text_info(elsewhere, spec.name)
    await load(server)
    await server.chat(model="small")
    info = next(i for i in server.engine.served.values() if i.model == "small")
    assert isinstance(info, ModelInfo)
    text = await server.state.texts.get(info)
    assert text._template is not None
    child = text._template._process._running
    assert child is not None and child.is_alive
    await unload(server)
    await until(lambda: not child.is_alive)


async def test_the_document_follows(server: TextServer) -> None:

    async def models() -> Any:
        document = (await server.client.get("/openapi.json")).json()
        return document["components"]["schemas"]["ChatCompletionRequest"]["properties"]["model"]

    assert (await models())["anyOf"][0]["enum"] == [MODEL, ""]
    await load(server)
    assert (await models())["enum"] == [MODEL, "small"]
    await unload(server)
    assert (await models())["anyOf"][0]["enum"] == [MODEL, ""]
    await unload(server, MODEL)
    assert "enum" not in (await models())["anyOf"][0]
    response = await server.client.get("/ready")
    assert (response.status_code, response.json()["phase"]) == (503, "stopped")


async def test_image_models_come_and_go_as_well() -> None:
    server = ImageServer(models=["painter=x", "second=y"], enable_runtime_loading=True)
    server.engine.make_info = lambda spec: image_info(spec.name)
    post = server.client.post
    assert (await post("/models/load", json={"model": "second"})).status_code == 200
    assert (await server.generate(model="second")).status_code == 200
    assert 'model_name="second"' in (await server.client.get("/metrics")).text
    assert (await post("/models/unload", json={"model": "second"})).status_code == 200
    assert 'model_name="second"' not in (await server.client.get("/metrics")).text
    assert 'model_name="painter"' in (await server.client.get("/metrics")).text
