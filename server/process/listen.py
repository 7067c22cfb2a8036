"""The socket that the server listens on, opened before anything slow, and its address for
people."""

import contextlib
import errno
import os
import resource
import socket
from dataclasses import dataclass
from pathlib import Path

from server.http.own_address import WILDCARDS
from server.settings import Settings

_BACKLOG = 2048
_MAX_UNSENT_BYTES = 128 << 10
"""Bytes of a stream that the kernel keeps besides those on their way. Without this limit it takes
megabytes, which is minutes of tokens, before a reader that has stopped is noticed."""
_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", None)  # Linux and macOS
_OTHER_FILES = 256
"""File descriptors for libraries, pipes and sockets of the workers, and files of models."""


class ListenProblem(Exception):
    """The address cannot be used. `str(problem)` is one line for the operator."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket. Clients that connect before the server runs wait in its backlog."""

    socket: socket.socket
    url: str
    """The address at which a client on this machine finds the server."""
    uds: Path | None = None

    def close(self) -> None:
        self.socket.close()
        if self.uds is not None:
            self.uds.unlink(missing_ok=True)


def open_listener(settings: Settings) -> Listener:
    """Bind and listen.

    Raises:
        ListenProblem: the address is in use, not allowed, or does not exist.
    """
    scheme = "https" if settings.ssl_certfile else "http"
    if settings.uds is not None:
        return Listener(_listen_unix(settings.uds), f"{scheme}://localhost", settings.uds)
    bound = _listen_tcp(settings.host, settings.port)
    host, port = bound.getsockname()[:2]
    host = WILDCARDS.get(host, host)
    return Listener(bound, f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")


def allow_open_files(num_connections: int) -> int:
    """Let the process open this many connections besides its other files, if the system allows it.
    Returns how many connections it can have."""
    wanted = num_connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return num_connections if soft == resource.RLIM_INFINITY else soft - _OTHER_FILES


def _listen_tcp(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError):
        raise ListenProblem(
            f"--host {host} is not an address of this machine; use one of its "
            "addresses, or 0.0.0.0 for all"
        ) from None
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if _NOTSENT_LOWAT is not None:  # accepted sockets inherit it
            sock.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, _MAX_UNSENT_BYTES)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise ListenProblem(_explain(error, host, port)) from None
    return sock


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} is in use on {host}; stop the program that uses it, or choose "
            "another --port"
        )
    if error.errno == errno.EACCES:
        return f"this user may not listen on port {port}; choose a --port above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return (
            f"--host {host} is not an address of this machine; use one of its addresses, or "
            "0.0.0.0 for all"
        )
    return f"cannot listen on {host} port {port}: {error.strerror}"


def _listen_unix(path: Path) -> socket.socket:
    if path.is_socket():
        if _answers(path):
            raise ListenProblem(
                f"--uds {path} is in use; stop the program that uses it, or choose another path"
            )
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(os.fspath(path))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise ListenProblem(f"--uds {path} cannot be used: {error.strerror or error}") from None
    return sock


def _answers(path: Path) -> bool:
    """Whether a process listens on a socket: its file outlives a server that was killed."""
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(os.fspath(path)) == 0
