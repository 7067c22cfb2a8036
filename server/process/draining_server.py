"""uvicorn's server with a graceful shutdown, for our app.

SIGTERM ─→ draining: /ready 503, new requests 503, running ones go on
        ─→ all have finished, or drain_timeout_s is over: the engine stops
        ─→ connections close, exit code 0
a second signal cuts all of that short, exit code 1
no model could be loaded ─→ the same end, exit code 1
"""

import asyncio
import gc
import logging
from functools import partial
from socket import socket
from types import FrameType
from typing import TYPE_CHECKING, cast

import structlog
import typer
import uvicorn
from fastapi import FastAPI

from server.app import build_routes
from server.http.connection import (
    KEEP_ALIVE_S,
    ClientConnection,
    ConnectionLimits,
    check_connections,
)
from server.process.announce import Announcer
from server.process.listen import Listener
from server.settings import Settings
from server.state import AppState

if TYPE_CHECKING:
    from server.process.start_screen import StartScreen

_LAST_WORDS_S = 5
"""Seconds for connections to finish once the engine has stopped."""

log = structlog.get_logger(__name__)


class DrainingServer(uvicorn.Server):
    """uvicorn's server, but it keeps listening while it drains, so that refusals reach the
    clients."""

    def __init__(
        self,
        config: uvicorn.Config,
        app: FastAPI,
        listener: Listener,
        screen: "StartScreen | None" = None,
    ) -> None:
        super().__init__(config)
        self._app = app
        self._state = state = cast(AppState, app.state.tandem)
        self._announcer = Announcer(state.settings, state.engine, listener, typer.echo, screen)
        self._announcement: asyncio.Task[None] | None = None
        self._on_terminal = screen is not None
        self._is_draining_told = False
        self.has_failed = False
        """Whether no model could be loaded, and the operator has been told why."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal. This runs in a signal handler, between any two instructions of the loop,
        so it only sets flags."""
        if self._state.lifecycle.draining:
            self._state.lifecycle.cut_drain_short()
            self.force_exit = True
        else:
            self._state.lifecycle.begin_drain()

    async def startup(self, sockets: list[socket] | None = None) -> None:
        await super().startup(sockets)
        build_routes(self._app)  # workers are being started meanwhile, which takes longer
        self._announcement = asyncio.create_task(self._announce())

    async def _announce(self) -> None:
        await self._announcer.run()
        # The models' objects stay, too: a full collection, about one a minute under load, took a
        # tenth of a second to walk them all, during which all streams stopped.
        gc.freeze()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; true ends the main loop."""
        if counter % 10 == 0:
            now_s = asyncio.get_running_loop().time()
            check_connections(self.server_state.connections, now_s)
        if await super().on_tick(counter) or self.force_exit:
            return True
        if self._announcer.nothing_serves:
            self.has_failed = True
            return True
        lifecycle = self._state.lifecycle
        if not lifecycle.draining:
            return False
        self._tell_of_draining()
        return self._state.admission.num_in_flight() == 0 or lifecycle.remaining_drain_s() == 0

    def _tell_of_draining(self) -> None:
        """Tell the operator about draining, once, if there is something to wait for."""
        if self._is_draining_told:
            return
        self._is_draining_told = True
        left = self._state.admission.num_requests
        if left and self._on_terminal:
            requests = "1 request" if left == 1 else f"{left} requests"
            typer.echo(f"Finishing {requests}; press Ctrl-C again to stop now.", err=True)
        elif left:
            log.info("draining", num_requests=left)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Stop the engine first: requests still in it end with an error, not with silence."""
        if self._announcement is not None:
            self._announcement.cancel()
        log.info("stopping", num_cut_off=self._state.admission.num_in_flight())
        stop = asyncio.create_task(self._state.engine.stop(0.0))
        while not stop.done() and not self.force_exit:
            await asyncio.wait({stop}, timeout=0.1)
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn then leaves the lifespan hanging
            # Requests are cut off because the operator wants that: no fault, and no traceback.
            logging.getLogger("uvicorn.error").disabled = True
            await self.lifespan.shutdown()


def uvicorn_config(settings: Settings, app: FastAPI) -> uvicorn.Config:
    """The configuration of uvicorn: our connections, our logs, no banner."""
    count_cut = app.state.tandem.metrics.count_cut
    protocol = partial(ClientConnection, ConnectionLimits.of(settings), count_cut)
    return uvicorn.Config(
        app,
        http=protocol,  # type: ignore[arg-type]  # uvicorn only calls it
        lifespan="on",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # our own middleware reads them
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=_LAST_WORDS_S,
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
    )
