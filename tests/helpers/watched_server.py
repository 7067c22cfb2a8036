"""Runs `tandem` with a watch over its event loop and its workers' steps. Started as a program."""

import asyncio
import sys
from functools import partial
from pathlib import Path
from typing import Any

# Otherwise the folders beside this file would be taken for packages of the same names.
sys.path.insert(0, str(Path(__file__).parents[2]))

from engine.worker.worker_options import WorkerOptions
from server.cli import main
from server.http.connection import ClientConnection
from server.process import draining_server, serve
from tests.helpers.stalls import StallWatch

_WORKER = str(Path(__file__).with_name("watched_worker.py"))


def watch_server() -> None:
    watch = StallWatch("server")
    watch.is_on = False  # until it listens, as nobody waits before
    startup = draining_server.DrainingServer.startup

    async def watched_startup(self: Any, *args: Any, **options: Any) -> None:
        await startup(self, *args, **options)
        asyncio.get_running_loop().call_soon(setattr, watch, "is_on", True)

    # uvloop calls it directly, past the methods that give callbacks.
    watch.methods(ClientConnection, "data_received")

    class WatchedRunner(asyncio.Runner):
        def run(self, *args: Any, **options: Any) -> Any:
            watch.loop(self.get_loop())
            return super().run(*args, **options)

    draining_server.DrainingServer.startup = watched_startup  # type: ignore[method-assign]
    asyncio.Runner = WatchedRunner
    command = (sys.executable, "-P", _WORKER, "engine.worker.loop")
    serve.WorkerOptions = partial(WorkerOptions, command=command)  # type: ignore[attr-defined, assignment]


if __name__ == "__main__":
    watch_server()
    main()
