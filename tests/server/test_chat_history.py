"""The playground's conversations on the server's disk, over HTTP."""

import json
import random
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.http import owner_files
from tests.helpers.server.fake_engine import FakeEngine
from tests.helpers.server.fake_server import FakeServer, answer_of, error_of

PATH = "/v1/playground/conversations"


@pytest.fixture
def server(tmp_path: Path) -> FakeServer:
    return FakeServer(FakeEngine(), conversations_dir=tmp_path / "history")


def conversation(name: str = "", **fields: Any) -> dict[str, Any]:
    name = name or f"c{random.randrange(10**9)}"
    return {"id": name, "title": "A title", "updated": random.random(), "messages": []} | fields


async def put(server: FakeServer, one: dict[str, Any], key: str = "") -> httpx.Response:
    return await server.client.put(f"{PATH}/{one['id']}", json=one, headers=headers(key))


async def listed(server: FakeServer, key: str = "") -> Any:
    return answer_of(await server.client.get(PATH, headers=headers(key)))


def files_in(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.rglob("*") if path.is_file()}


def modes_in(folder: Path) -> list[int]:
    return [path.stat().st_mode for path in folder.rglob("*")]


def headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


async def test_what_is_kept_is_listed_newest_first_read_replaced_and_deleted(
    server: FakeServer, tmp_path: Path
) -> None:
    old, new = conversation(updated=1), conversation(updated=2, messages=[{"content": "é\n" * 9}])
    for one in (old, new):
        assert (await put(server, one)).status_code == 204
    brief = ("id", "title", "updated")
    assert (await listed(server))["data"] == [{k: one[k] for k in brief} for one in (new, old)]
    assert answer_of(await server.client.get(f"{PATH}/{new['id']}")) == new
    await put(server, old | {"updated": 3})
    assert [one["id"] for one in (await listed(server))["data"]] == [old["id"], new["id"]]
    # Another process finds them, and nobody else on the machine can read them.
    other = FakeServer(FakeEngine(), conversations_dir=tmp_path / "history")
    assert answer_of(await other.client.get(f"{PATH}/{new['id']}")) == new
    assert not any(stat.S_IMODE(mode) & 0o077 for mode in modes_in(tmp_path / "history"))
    for _ in range(2):
        assert (await server.client.delete(f"{PATH}/{new['id']}")).status_code == 204
    assert (await server.client.get(f"{PATH}/{new['id']}")).status_code == 404
    assert (await listed(server))["deleted"] == [new["id"]]
    assert "é" not in "".join(files_in(tmp_path).values())
    await put(server, new)
    assert (await listed(server))["deleted"] == []


async def test_each_key_has_conversations_of_its_own(tmp_path: Path) -> None:
    server = FakeServer(FakeEngine(), api_keys=("one", "two"), conversations_dir=tmp_path)
    mine = conversation()
    await put(server, mine, "one")
    assert [one["id"] for one in (await listed(server, "one"))["data"]] == [mine["id"]]
    assert (await listed(server, "two"))["data"] == []
    place = f"{PATH}/{mine['id']}"
    assert (await server.client.get(place, headers=headers("two"))).status_code == 404
    await server.client.delete(place, headers=headers("two"))
    assert answer_of(await server.client.get(place, headers=headers("one"))) == mine
    for method in ("get", "put", "delete"):
        assert (await server.client.request(method, place)).status_code == 401


async def test_what_is_no_conversation_is_refused(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one = conversation("good")
    for body in (b"", b"[]", b"{", json.dumps(one | {"title": 1}).encode(), b"\xff"):
        error_of(await server.client.put(f"{PATH}/good", content=body))
    error_of(await server.client.put(f"{PATH}/other", json=one))
    for name in ("..%2fa", "A", "a" * 65, ".", "a.json"):
        response = await server.client.put(f"{PATH}/{name}", json=one | {"id": name})
        assert response.status_code in (400, 404, 405), name
    monkeypatch.setattr(owner_files, "MAX_FILES", 2)
    monkeypatch.setattr(owner_files, "MAX_BYTES", 1000)
    for name in ("a", "b"):
        assert (await put(server, conversation(name))).status_code == 204
    assert "delete some" in error_of(await put(server, conversation("c")))["message"]
    assert (await put(server, conversation("a", messages=["x" * 500]))).status_code == 204
    assert (
        "delete some"
        in error_of(await put(server, conversation("b", messages=["x" * 500])))["message"]
    )
    assert set(files_in(tmp_path)) == {"a.json", "b.json"}


async def test_without_a_folder_nothing_is_kept() -> None:
    server = FakeServer(FakeEngine())
    assert answer_of(await server.client.get("/v1/playground"))["keeps_history"] is False
    assert "--conversations-dir" in error_of(await put(server, conversation()))["message"]
