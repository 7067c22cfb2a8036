"""The address under which clients find this server, for urls of what it keeps for them.

A `Host` header holds whatever its sender likes. A url with a foreign name in it, kept or passed on,
would lead to another server; so a name counts only if it is one of ours.
"""

import ipaddress
import re
import socket
from functools import cache

from fastapi import Request

from engine.errors import InvalidParameter

TRUSTED_NAME = "tandem.trusted_name"
"""Key in a request's scope for the name that a trusted proxy was asked for."""
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""For each host that stands for all addresses, the one at which this machine finds it."""

_NAME = re.compile(r"(?P<name>\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?P<port>:[0-9]{1,5})?")


def own_url(request: Request, path: str, *, public_url: str | None, host: str) -> str:
    """The url of one of our paths, for the client that asks.

    Args:
        public_url: the beginning of all urls, whatever name was asked for.
        host: the name or address that the server listens on.

    Raises:
        InvalidParameter: the requested name is not known to be ours.
    """
    if public_url is not None:
        return f"{public_url}{path}"
    trusted = request.scope.get(TRUSTED_NAME)
    asked = trusted if trusted is not None else request.headers.get("host", "")
    name = name_of_host(asked)
    if name is None or (trusted is None and not _is_ours(name, request, host)):
        raise InvalidParameter(
            "the Host header does not name this server, so no url can be made for the client; "
            "use response_format b64_json, or start the server with --public-url",
            param="response_format",
        )
    prefix = request.scope.get("root_path", "")
    return f"{request.scope['scheme']}://{asked}{prefix}{path}"


def name_of_host(header: str) -> str | None:
    """The name or address in a `Host` header, in lower case and without the port; None if there
    can be no such name."""
    found = _NAME.fullmatch(header)
    return None if found is None else found["name"].strip("[]").lower()


def _is_ours(name: str, request: Request, host: str) -> bool:
    address = (request.scope.get("server") or ("",))[0]
    return name in (host.lower(), address, *machine_names()) or is_loopback(name)


def is_loopback(name: str) -> bool:
    """Whether this names the machine itself."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


@cache
def machine_names() -> tuple[str, ...]:
    """Names of this machine, found without a name server."""
    name = socket.gethostname().lower()
    return name, name.partition(".")[0]
