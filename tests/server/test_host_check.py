"""DNS rebinding: a website whose name leads to 127.0.0.1 cannot use a server without keys."""

import socket

import httpx
import pytest

from server.app import create_app
from server.settings import Settings
from tests.helpers.server.fake_engine import FakeEngine
from tests.helpers.server.fake_server import client_of

OURS = [
    *("127.0.0.1:8000", "127.9.8.7", "[::1]:8000", "192.168.1.5:8000", "", None),
    *("localhost", "LocalHost:8000", "tandem.localhost:1", "host.docker.internal:8000"),
    *(socket.gethostname(), "x", "tandem-1:8000"),
]
STRANGERS = [
    *("rebound.example:8000", "localhost.rebound.example", "127.0.0.1.rebound.example"),
    *(
        "not.localhost.example",
        "localhost@rebound.example",
        "localhost:80:80",
        "[::1].rebound.example",
    ),
    *("a b", "{}"),
]


def server(at: str = "127.0.0.1", **settings) -> httpx.AsyncClient:
    """A client of a server, whose requests arrive at that address."""
    client = client_of(create_app(Settings(**settings), FakeEngine()))
    client.base_url = httpx.URL(f"http://{at}")
    return client


async def asked(
    client: httpx.AsyncClient, host: str | None, path: str = "/version", **headers: str
) -> httpx.Response:
    request = client.build_request("GET", path, headers=headers)
    lines = [(name, value) for name, value in request.headers.raw if name != b"Host"]
    request.headers = httpx.Headers(lines + ([] if host is None else [("Host", host)]))
    return await client.send(request)


async def test_names_of_this_machine_pass():
    async with server() as client:
        for host in OURS:
            assert (await asked(client, host)).status_code == 200, host


async def test_a_website_cannot_use_the_server_by_a_name_of_its_own():
    """Neither probes nor pages, nor with the headers that a script may add."""
    forwarded = {"X-Forwarded-Host": "localhost", "Forwarded": "host=localhost"}
    async with server() as client:
        for host in STRANGERS:
            response = await asked(client, host, **forwarded)
            assert response.status_code == 403, host
            error = response.json()["error"]
            assert (error["type"], error["code"]) == ("invalid_request_error", "host_not_allowed")
        for path in ("/", "/health", "/ready", "/metrics", "/openapi.json", "/nothing"):
            assert (await asked(client, STRANGERS[0], path)).status_code == 403, path


async def test_the_message_says_what_to_do():
    async with server() as client:
        assert "--allowed-hosts rebound.example " in (await asked(client, STRANGERS[0])).text
        assert "--allowed-hosts NAME " in (await asked(client, "a b")).text


@pytest.mark.parametrize(
    "settings",
    [
        {"allowed_hosts": ("other.example", "Rebound.Example")},
        {"allowed_hosts": ("*",)},
        {"public_url": "https://rebound.example/llm"},
        {"host": "0.0.0.0"},
        {"host": "::"},
        {"host": "192.168.1.5", "at": "192.168.1.5"},
    ],
)
async def test_names_that_the_operator_gives_or_need_not_give(settings):
    async with server(**settings) as client:
        assert (await asked(client, "rebound.example:8000")).status_code == 200


async def test_only_a_key_that_all_must_have_replaces_the_name():
    key = {"Authorization": "Bearer secret"}
    async with server(api_keys=("secret",)) as client:
        assert (await asked(client, "rebound.example")).status_code == 401
        assert (await asked(client, "rebound.example", **key)).status_code == 200
    async with server(admin_keys=("secret",), enable_runtime_loading=True) as client:
        assert (await asked(client, "rebound.example", **key)).status_code == 403
