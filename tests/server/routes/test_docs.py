"""The page at /docs: whole, and from this server alone."""

import hashlib
import re
from pathlib import Path

import httpx
import pytest

from server.routes.docs import FILES
from tests.helpers.server.text_server import TextServer

SWAGGER_UI = {
    "swagger-ui-bundle.js": "e6a898692f2d768e807c3ba4626068a69a2c5dd960dd6c76f3e4d3a3de180af2",
    "swagger-ui.css": "5ed08757e53da3e026d6cbecc61fe5d43585c9560b302d534ad56692519a273d",
}
"""SHA-256 of the files that `NOTICE` names."""


async def test_the_page_loads_its_own_files_only(server: TextServer) -> None:
    page = await server.client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    links = re.findall(r"(?:src|href)=\"([^\"]*)\"", page.text)
    files = [link for link in links if link != "data:,"]
    assert {f"docs/{name}" for name in FILES.names if name != "index.html"} == set(files)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert not re.search(r"https?:|\*|script-src[^;]*unsafe", policy)
    for link in files:
        response = await server.client.get(f"/{link}")
        assert response.status_code == 200
        kind = {"css": "text/css", "js": "text/javascript"}[link.rpartition(".")[2]]
        assert response.headers["content-type"].split(";")[0] == kind


@pytest.mark.parametrize("name", SWAGGER_UI)
async def test_swagger_ui_is_the_one_that_was_released(server: TextServer, name: str) -> None:
    for encoding in ("gzip", "identity"):
        response = await server.client.get(f"/docs/{name}", headers={"Accept-Encoding": encoding})
        assert response.headers.get("content-encoding", "identity") == encoding
        assert hashlib.sha256(response.content).hexdigest() == SWAGGER_UI[name]


async def test_it_reads_this_servers_description(server: TextServer) -> None:
    start = (await server.client.get("/docs/start.js")).text
    assert 'url: "openapi.json"' in start
    assert "http" not in start
    assert (await server.client.get("/openapi.json")).status_code == 200


@pytest.mark.parametrize("path", ["/docs/", "/docs/openapi.json", "/docs/..%2fapp.py", "/docs/x"])
async def test_nothing_else_is_sent(server: TextServer, path: str) -> None:
    response = await server.client.get(path)
    assert response.status_code in (307, 404)
    assert "import" not in response.text


async def test_behind_a_prefix(tokenizer_folder: Path) -> None:
    server = TextServer(tokenizer_folder, root_path="/llm")
    async with server.client:
        page = httpx.URL("http://test/llm/docs")
        assert (await server.client.get(page)).status_code == 200
        assert (await server.client.get(page.join("docs/start.js"))).status_code == 200
        assert (await server.client.get(page.join("openapi.json"))).status_code == 200
