"""Addresses of the sockets between server and workers, each in a private folder of its own."""

import contextlib
import tempfile
from pathlib import Path

_SCHEME = "ipc://"


def new_socket() -> str:
    """Make an address to bind. Only this user can reach its folder."""
    return f"{_SCHEME}{tempfile.mkdtemp(prefix='tandem-')}/worker.sock"


def remove_socket(address: str) -> None:
    """Remove the socket's name and folder; connections stay. Does nothing the second time."""
    path = Path(address.removeprefix(_SCHEME))
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
        path.parent.rmdir()
