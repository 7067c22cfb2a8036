"""Addresses of the sockets between server and workers: each in a private folder of its own."""

import contextlib
import tempfile
from pathlib import Path

_SCHEME = "ipc://"


def new_socket() -> str:
    """An address to bind. Only this user can reach its folder."""
    return f"{_SCHEME}{tempfile.mkdtemp(prefix='tandem-')}/worker.sock"


def remove_socket(address: str) -> None:
    """Take the socket's name and its folder away; connections go on. Again does nothing."""
    path = Path(address.removeprefix(_SCHEME))
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
        path.parent.rmdir()
