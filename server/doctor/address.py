"""Where the server would listen, and how many connections it may have."""

import contextlib
from typing import Any

import httpx

from server.doctor.finding import Finding
from server.process.listen import ListenProblem, allow_open_files, open_listener
from server.settings import Settings

_ANSWER_S = 1.0
_NEXT_PORTS = 20


def port(settings: Settings) -> Finding:
    try:
        with contextlib.closing(open_listener(settings)) as listener:
            return Finding("port", "ok", f"{listener.uds or listener.url} is free")
    except ListenProblem as problem:
        found, _, fix = str(problem).partition("; ")
    if settings.uds is None and _is_tandem(settings):
        return Finding(
            "port",
            "limited",
            f"a Tandem server already answers on port {settings.port}",
            f"use that one, or start another: tandem serve --port {_free_port(settings)}",
        )
    if settings.uds is None and "in use" in found:
        fix = f"tandem serve --port {_free_port(settings)}"
    return Finding("port", "broken", found, fix or "choose another address with --host or --uds")


def connections(settings: Settings) -> Finding:
    """Whether the limit on open files allows the connections that the settings do."""
    wanted, allowed = settings.max_connections, allow_open_files(settings.max_connections)
    fix = f"ulimit -n {2 * wanted} before tandem serve; systemd: LimitNOFILE={2 * wanted}"
    if allowed < 1:
        return Finding("open files", "broken", "the limit is too low for any connection", fix)
    if allowed < wanted:
        return Finding(
            "open files",
            "limited",
            f"the limit allows {allowed} of {wanted} connections at a time",
            fix,
        )
    return Finding("open files", "ok", f"enough for {wanted} connections at a time")


def _is_tandem(settings: Settings) -> bool:
    scheme = "https" if settings.ssl_certfile else "http"
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    url = f"{scheme}://{host}:{settings.port}{settings.root_path}/ready"
    try:
        # Nothing but whether it is one of ours is read, so its certificate need not be known.
        answer: Any = httpx.get(url, timeout=_ANSWER_S, verify=False).json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return False
    return isinstance(answer, dict) and {"phase", "models"} <= answer.keys()


def _free_port(settings: Settings) -> int:
    """A port nearby that is free, or the next one."""
    first = settings.port + 1
    for number in range(first, min(first + _NEXT_PORTS, 1 << 16)):
        with contextlib.suppress(ListenProblem):
            open_listener(settings.model_copy(update={"port": number})).close()
            return number
    return min(first, (1 << 16) - 1)
