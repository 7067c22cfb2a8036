"""Runs the app in one process, behind one socket. Its workers start first, which takes longest."""

import asyncio
import contextlib
import gc
import ssl
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import structlog
import typer
from uvicorn.loops.auto import auto_loop_factory

from engine.processes.logs import configure_logging
from engine.version import __version__
from engine.worker.client import EngineClient, WorkerOptions
from engine.worker.replicas.client import ReplicatedEngineClient
from server.http.own_address import is_loopback
from server.process.listen import Listener, ListenProblem, allow_open_files, open_listener
from server.settings import Settings, unknown_variables

if TYPE_CHECKING:
    from server.process.start_screen import Terminal

CreateEngine = Callable[[Settings], EngineClient]

log = structlog.get_logger(__name__)


def run(settings: Settings, create_engine: CreateEngine | None = None) -> int:
    """Serve until told to stop. Returns the exit code."""
    terminal = None
    wants_lines = settings.access_log or settings.log_level == "debug"
    if settings.log_format == "auto" and sys.stderr.isatty() and not wants_lines:
        from server.process.start_screen import Terminal

        terminal = Terminal()
        level = least_level(settings)
        configure_logging("console", level, stream=terminal.stderr, colors=terminal.has_colors)
    else:
        configure_logging(settings.log_format, settings.log_level)
    with terminal or contextlib.nullcontext():
        return _run(settings, terminal, create_engine)


def _run(
    settings: Settings, terminal: "Terminal | None", create_engine: CreateEngine | None
) -> int:
    try:
        listener = open_listener(settings)
    except ListenProblem as problem:
        typer.echo(f"tandem: {problem}", err=True)
        return 1
    create = create_engine or partial(create_process_engine, terminal=terminal)
    with (
        contextlib.closing(listener),
        asyncio.Runner(loop_factory=auto_loop_factory()) as runner,
    ):
        return runner.run(_serve(settings, create(settings), listener, terminal))


async def _serve(
    settings: Settings, engine: EngineClient, listener: Listener, terminal: "Terminal | None"
) -> int:
    _log_start(settings)
    _allow_connections(settings.max_connections)
    has_app = asyncio.Event()

    async def check_text(path: str) -> int:
        await has_app.wait()
        assert engine.check_text is not None  # the app has set the one that is meant
        return await engine.check_text(path)

    engine.check_text = check_text
    await engine.start()
    await asyncio.to_thread(_import_app)  # meanwhile the workers import torch
    from server.app import create_app
    from server.process.draining_server import DrainingServer, uvicorn_config

    app = create_app(settings, engine)
    has_app.set()
    config = uvicorn_config(settings, app)
    try:
        config.load()
    except (OSError, ssl.SSLError):
        typer.echo(
            "ssl_certfile and ssl_keyfile contain no usable TLS certificate and key; "
            "check both files",
            err=True,
        )
        await engine.stop(0.0)
        return 2
    screen = None if terminal is None else terminal.start_screen(str(listener.uds or listener.url))
    server = DrainingServer(config, app, listener, screen)
    # These objects stay for good. Decoding a body of many objects would look at them again and
    # again, which takes ten times as long as decoding.
    gc.collect()
    gc.freeze()
    gc.enable()
    await server.serve(sockets=[listener.socket])
    return 1 if server.force_exit or server.has_failed else 0


def _import_app() -> None:
    import server.process.draining_server  # noqa: F401


def least_level(settings: Settings) -> str:
    """The least severe level to log next to a start screen, which shows the rest."""
    return "warning" if settings.log_level == "info" else settings.log_level


def create_process_engine(
    settings: Settings, *, terminal: "Terminal | None" = None
) -> EngineClient:
    """The engine for production: a worker process per model, or several."""
    options = WorkerOptions(
        config=settings.engine_config,
        cache_dir=settings.cache_path,
        offline=settings.offline,
        cpu_isa=settings.cpu_isa,
        log_format=settings.log_format if terminal is None else "console",
        log_level=settings.log_level if terminal is None else least_level(settings),
        stderr=None if terminal is None else terminal.workers_stderr,
        tunables=settings.worker_tunables,
        visible_gpus=settings.visible_gpus,
    )
    return ReplicatedEngineClient(settings.model_specs, options)


def _log_start(settings: Settings) -> None:
    log.info("starting", version=__version__, models=[spec.name for spec in settings.model_specs])
    for name in unknown_variables():
        log.warning("this environment variable is not a setting; check its spelling", name=name)
    is_open = not settings.read_api_keys() and settings.uds is None
    if is_open and not is_loopback(settings.host):
        log.warning(
            "anybody who can reach this host can use the server; set api_keys to prevent that"
        )
        if settings.enable_runtime_loading and not settings.admin_keys:
            log.warning(
                "anybody who may use the server can load and unload its models; set "
                "admin_keys to prevent that"
            )


def _allow_connections(max_connections: int) -> None:
    possible = allow_open_files(max_connections)
    if possible < max_connections:
        log.warning(
            "the system allows fewer open files than max_connections needs; raise the limit with "
            "ulimit -n",
            max_connections=max_connections,
            possible=possible,
        )
