"""Refuses requests for names that are not this machine's, against DNS rebinding: a website lets its
own name lead to 127.0.0.1, and the browser takes its pages and this server for one site.

Only a loopback address without API keys needs this, as such a page has no key. Probes are checked
too, as in Ollama and Jupyter: what watches this machine asks for localhost or for an address.
`X-Forwarded-Host` does not count, since a page may send it.
"""

import ipaddress
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from server.http.errors import INVALID_REQUEST, error_response
from server.http.own_address import is_loopback, machine_names, name_of_host
from server.http.scope import get_header

ANY_HOST = "*"
_RESERVED = (".localhost", ".internal")
"""Domains in which no website can be (RFC 6761, ICANN 2024). Containers of Docker Desktop reach
this machine as host.docker.internal."""


class HostCheckMiddleware:
    """Answers 403 to requests for unknown names.

    Args:
        allowed_hosts: names that count as ours.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Collection[str]) -> None:
        self.app = app
        self._allowed = {host.lower() for host in allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_over_loopback(scope):
            await self.app(scope, receive, send)
            return
        host = (get_header(scope, b"host") or b"").decode("latin-1")
        name = name_of_host(host)
        if not host or (name is not None and self._is_allowed(name)):
            await self.app(scope, receive, send)
        else:
            await _refusal(name)(scope, receive, send)

    def _is_allowed(self, name: str) -> bool:
        if name in self._allowed or name in machine_names() or name.endswith(_RESERVED):
            return True
        return _has_no_domain(name) or _is_address(name)


def _is_over_loopback(scope: Scope) -> bool:
    server = scope.get("server")
    return server is not None and is_loopback(server[0])


def _has_no_domain(name: str) -> bool:
    """Whether this is a single word, such as localhost or a name of /etc/hosts. A website's name
    has a dot."""
    return name.replace("-", "").isalnum()


def _is_address(name: str) -> bool:
    """Whether this is an IP address. No name server leads from it to another one."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _refusal(name: str | None) -> ASGIApp:
    asked = "the Host header is not a host name"
    if name is not None:
        asked = f"{name} is not known as a name of this server"
    return error_response(
        403,
        f"{asked}. Without an API key it only answers to IP addresses, names without a dot such as "
        f"localhost, and names that its operator lists, so that websites cannot use it: start it "
        f"with --allowed-hosts {name or 'NAME'} or with --api-key, or let the proxy in front send "
        f"Host: localhost",
        INVALID_REQUEST,
        code="host_not_allowed",
    )
