"""`POST /v1/load_lora_adapter` and `/v1/unload_lora_adapter`, over a scripted engine."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.errors import CorruptFile, EngineError, InsufficientMemory, TooManyAdapters
from server.models import library
from tests.helpers.server.embedding_server import EmbeddingServer
from tests.helpers.server.fake_images import image_info
from tests.helpers.server.fake_server import answer_of, error_of, until
from tests.helpers.server.image_server import ImageServer
from tests.helpers.server.text_server import MODEL, TextServer, text_info

Start = Callable[..., TextServer]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The adapters that may be loaded: `poet` and `judge`."""
    for name in ("poet", "judge", "no adapter", ".hidden"):
        (tmp_path / "loras" / name).mkdir(parents=True)
        if name != "no adapter":
            (tmp_path / "loras" / name / "adapter_config.json").touch()
    return tmp_path / "loras"


@pytest.fixture
def start(tokenizer_folder: Path, folder: Path) -> Start:
    def start(*models: str, **settings: Any) -> TextServer:
        given = {"loras_dir": folder, "enable_runtime_loading": True}
        infos = [text_info(tokenizer_folder, model) for model in models or (MODEL,)]
        return TextServer(tokenizer_folder, *infos, **{**given, **settings})

    return start


@pytest.fixture
async def server(start: Start) -> TextServer:
    return start()


async def load(server: TextServer, name: str = "poet", **fields: Any) -> httpx.Response:
    return await server.post("/v1/load_lora_adapter", lora_name=name, **fields)


async def unload(server: TextServer, name: str = "poet", **fields: Any) -> httpx.Response:
    return await server.post("/v1/unload_lora_adapter", lora_name=name, **fields)


async def served(server: TextServer) -> list[str]:
    return [card["id"] for card in (await server.client.get("/v1/models")).json()["data"]]


async def test_an_adapter_is_loaded_asked_and_unloaded(server: TextServer) -> None:
    error_of(await server.chat(model="poet"), 404)
    answer = answer_of(await load(server))
    assert answer == {
        "object": "lora_adapter",
        "lora_name": "poet",
        "model": MODEL,
        "num_layers": 14,
        "ranks": [4, 8],
        "num_left_out": 1,
        "left_out": ["vision.fc"],
    }
    assert await served(server) == [MODEL, "poet"]
    assert (await server.chat(model="poet")).status_code == 200
    assert server.last_request.adapter == "poet"
    assert 'lora_name="poet"' in (await server.client.get("/metrics")).text
    response = await unload(server)
    assert response.json()["deleted"] is True
    assert "poet" not in (await server.client.get("/metrics")).text
    assert await served(server) == [MODEL]
    error_of(await server.chat(model="poet"), 404)
    assert (await server.chat(model=MODEL)).status_code == 200


@pytest.mark.parametrize("by_folder", [False, True])
async def test_what_vllms_clients_send(server: TextServer, folder: Path, by_folder: bool) -> None:
    path = f"{folder / 'poet'}/" if by_folder else "poet"
    answer_of(await load(server, "rhymes", lora_path=path, load_inplace=False))
    [order] = server.engine.adapter_orders
    assert (order.name, order.folder, order.replaces) == ("rhymes", str(folder / "poet"), False)
    assert (await load(server, "rhymes", lora_path="judge", load_inplace=True)).status_code == 200
    assert server.engine.adapter_orders[1].replaces
    assert await served(server) == [MODEL, "rhymes"]


async def test_the_operator_names_what_may_be_loaded(start: Start, folder: Path) -> None:
    settings = {"loadable_loras": ["mine=/secret/mine"], "engine": {"lora": ["first=/secret/1"]}}
    server = start(**settings)
    for name in ("mine", "first"):
        assert (await load(server, name)).status_code == 200
    assert [o.folder for o in server.engine.adapter_orders] == ["/secret/mine", "/secret/1"]
    for path in ("/etc", "../poet", "poet/../judge", "no adapter", ".hidden", str(folder)):
        error = error_of(await load(server, "x", lora_path=path), 404)
        assert (error["code"], error["param"]) == ("adapter_not_found", "lora_path")
        assert "judge, mine, poet" in error["message"] and "secret" not in error["message"]
    assert error_of(await load(server, "nobody"), 404)["param"] == "lora_name"
    anywhere = start(loadable_loras=["*"], loras_dir=None)
    assert (await load(anywhere, "x", lora_path="/somewhere/x")).status_code == 200
    assert anywhere.engine.adapter_orders[0].folder == "/somewhere/x"
    error_of(await load(anywhere, "/somewhere/y"), 404)


async def test_a_hub_id_is_fetched_before_it_is_loaded(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"loadable_loras": ["far=org/poet"], "offline": True}
    error = error_of(await load(start(**settings), "far"), 404)
    assert error["code"] == "model_source_not_found"
    assert "offline mode is on" in error["message"]
    monkeypatch.setattr(library, "resolve_adapter", lambda ref, **_: f"/snapshots/{ref}")
    server = start(**settings)
    assert (await load(server, "far")).status_code == 200
    assert server.engine.adapter_orders[0].folder == "/snapshots/org/poet"
    error_of(await load(server, "x", lora_path="org/else"), 404)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CorruptFile("the file is cut off"), 400),
        (InsufficientMemory("9 MiB are asked for, 3 MiB are free"), 503),
        (TooManyAdapters("the model has 16 adapters and max_loras is 16"), 409),
    ],
)
async def test_a_load_that_fails_says_why(
    server: TextServer, error: EngineError, status: int
) -> None:
    server.engine.load_error = error
    answer = error_of(await load(server), status)
    assert (answer["message"], answer["code"]) == (error.message, error.code)
    assert await served(server) == [MODEL]
    server.engine.load_error = None
    assert (await load(server)).status_code == 200


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"lora_name": ""}, 400, "lora_name"),
        ({"lora_name": "n" * 257}, 400, "lora_name"),
        ({"lora_name": "a=b", "lora_path": "poet"}, 400, "lora_name"),
        ({"lora_name": " a", "lora_path": "poet"}, 400, "lora_name"),
        ({"lora_name": "a\n", "lora_path": "poet"}, 400, "lora_name"),
        ({"lora_name": "poet", "lora_path": "p" * 4097}, 400, "lora_path"),
        ({"lora_name": "poet", "lora_path": ["poet"]}, 400, "lora_path"),
        ({"lora_name": "poet", "load_inplace": 1}, 400, "load_inplace"),
        ({"lora_name": "poet", "lora_int_id": 1}, 400, "lora_int_id"),
        ({"lora_name": "poet", "model": "nobody"}, 404, "model"),
        ({}, 400, "lora_name"),
    ],
)
async def test_what_cannot_be_loaded_is_refused_at_once(
    server: TextServer, fields: dict[str, Any], status: int, param: str
) -> None:
    error = error_of(await server.post("/v1/load_lora_adapter", **fields), status)
    assert error["param"] == param
    assert not server.engine.adapter_orders


async def test_a_name_that_is_taken(server: TextServer) -> None:
    assert (await load(server)).status_code == 200
    for name in ("poet", MODEL):
        error = error_of(await load(server, name, lora_path="judge"), 409)
        assert error["code"] == "model_conflict"


async def test_what_cannot_be_unloaded(server: TextServer) -> None:
    assert (await load(server)).status_code == 200
    assert error_of(await unload(server, "nobody"), 404)["code"] == "model_not_found"
    assert error_of(await unload(server, MODEL), 404)["code"] == "adapter_not_found"
    assert error_of(await unload(server, model="other"), 404)["code"] == "adapter_not_found"
    assert await served(server) == [MODEL, "poet"]
    assert (await unload(server, model=MODEL)).status_code == 200


async def test_its_requests_may_finish_and_new_ones_are_refused(server: TextServer) -> None:
    await load(server)
    server.engine.hold()
    asking = asyncio.create_task(server.chat(model="poet", max_tokens=4))
    await until(lambda: bool(server.engine.live))
    unloading = asyncio.create_task(unload(server))
    await until(lambda: "poet" not in server.engine.served[MODEL].names)
    error_of(await server.chat(model="poet"), 404)
    assert await served(server) == [MODEL]
    assert not unloading.done()
    server.engine.release()
    assert (await asking).status_code == 200
    assert (await unloading).status_code == 200


async def test_a_client_that_leaves_does_not_end_the_load(server: TextServer) -> None:
    server.engine.may_change.clear()
    loading = asyncio.create_task(load(server))
    await until(lambda: bool(server.engine.adapter_orders))
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    server.engine.may_change.set()
    await until(lambda: "poet" in server.engine.served[MODEL].names)


async def test_of_several_models_one_is_named(start: Start) -> None:
    server = start("a", "b")
    assert error_of(await load(server), 400)["param"] == "model"
    response = await load(server, model="b")
    assert (response.status_code, response.json()["model"]) == (200, "b")
    assert server.engine.served["b"].names == ["b", "poet"]


async def test_an_image_model_has_those_that_name_it() -> None:
    server = ImageServer(image_info("painter"), loadable_loras=["*"], enable_runtime_loading=True)
    body = {"lora_name": "style", "lora_path": "/x.safetensors"}
    error = error_of(await server.post("/v1/load_lora_adapter", **body), 400)
    assert "no text model is served here" in error["message"]
    body["model"] = "painter"
    response = await server.post("/v1/load_lora_adapter", **body)
    assert (response.status_code, response.json()["model"]) == (200, "painter")
    [order] = server.engine.adapter_orders
    assert (order.name, order.folder) == ("style", "/x.safetensors")
    cards = (await server.client.get("/v1/models")).json()["data"]
    assert [(card["id"], card["parent"], card["root"]) for card in cards] == [
        ("painter", None, "painter"),
        ("style", "painter", "painter"),
    ]
    assert (await server.generate(loras=[{"name": "style"}])).status_code == 200
    body = {"lora_name": "style"}
    assert (await server.post("/v1/unload_lora_adapter", **body)).status_code == 200
    error = error_of(await server.generate(loras=[{"name": "style"}]), 404)
    assert error["param"] == "loras"


async def test_other_kinds_of_models_take_none(tokenizer_folder: Path) -> None:
    server = EmbeddingServer(tokenizer_folder, enable_runtime_loading=True, loadable_loras=["*"])
    error = error_of(
        await server.post(
            "/v1/load_lora_adapter", lora_name="poet", lora_path="/x", model="embedder"
        ),
        400,
    )
    assert "takes no LoRA adapters" in error["message"]


async def test_files_and_folders_of_image_adapters_are_found(start: Start, folder: Path) -> None:
    (folder / "style.safetensors").touch()
    (folder / "saved").mkdir()
    (folder / "saved" / "pytorch_lora_weights.safetensors").touch()
    server = start()
    for name, place in (("style", "style.safetensors"), ("saved", "saved")):
        assert (await load(server, name)).status_code == 200
        assert server.engine.adapter_orders[-1].folder == str(folder / place)


async def test_it_is_off_unless_the_operator_wants_it(start: Start) -> None:
    server = start(enable_runtime_loading=False, loras_dir=None)
    for change in (load, unload):
        error = error_of(await change(server), 403)
        assert error["code"] == "not_allowed"
        assert "--enable-runtime-loading" in error["message"]


async def test_admin_keys_guard_it(start: Start) -> None:
    server = start(api_keys=["user"], admin_keys=["chief"])
    body = {"lora_name": "poet"}
    for route in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        for key, status in (("user", 403), ("chief", 200)):
            headers = {"Authorization": f"Bearer {key}"}
            response = await server.client.post(route, json=body, headers=headers)
            assert response.status_code == status, response.text
