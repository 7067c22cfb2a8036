"""Clients are told apart by key or, without keys, by address."""

import pytest
from starlette.types import Receive, Scope, Send

from server.http.owner import current_client
from server.middleware.auth import AuthMiddleware
from server.middleware.request_id import RequestIdMiddleware


async def client_of(address: tuple[str, int] | None, key: str = "", keys: tuple[str, ...] = ()):
    """Who asks, as a route sees it."""
    seen: list[str] = []

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(current_client())

    async def nothing(*_: object) -> None:
        return None

    scope = {
        "type": "http", "method": "POST", "path": "/v1/completions", "root_path": "",
        "client": address, "headers": [(b"authorization", b"Bearer " + key.encode())],
    }  # fmt: skip
    app = RequestIdMiddleware(AuthMiddleware(route, keys) if keys else route)
    await app(scope, nothing, nothing)
    return seen[0]


HERE, THERE = ("10.0.0.1", 1000), ("10.0.0.2", 1000)
KEYS = ("first-key", "second-key")


async def test_an_address_is_a_client_where_there_are_no_keys() -> None:
    assert await client_of(HERE) == await client_of(("10.0.0.1", 2000), key="any")
    assert await client_of(HERE) != await client_of(THERE)


async def test_a_key_is_a_client_wherever_it_is_used() -> None:
    first = await client_of(HERE, "first-key", KEYS)
    assert first == await client_of(THERE, "first-key", KEYS)
    assert first != await client_of(HERE, "second-key", KEYS)
    assert "first-key" not in first


@pytest.mark.parametrize("address", [None, ("", 0)])
async def test_there_may_be_no_address(address: tuple[str, int] | None) -> None:
    assert await client_of(address) == ""
