"""Starts a server under test, waits until it serves, and stops everything it started."""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from loadtest.client import CompletionClient, Target, TimedRecord
from loadtest.exchange import Origin
from loadtest.processes import process_trees
from loadtest.prompts import story_prompt
from loadtest.record import RequestRecord
from loadtest.workload import PlannedRequest

_POLL_S = 0.05
_LOG_TAIL_CHARS = 2000
_PORTS = range(20_000, 32_768)


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """A server's start. `command` and `version_command` are given to `/bin/sh -c`.

    `variables` are added to their environment, so the commands can be kept, and stored with
    results, without the paths of one machine. Servers are compared with others of their `groups`.
    `extra_body` is merged into every measured request. Requests name `models` in turn, such as
    adapters of `model`, or `model` if there are none.
    """

    name: str
    command: str
    url: str
    model: str
    version_command: str | None = None
    variables: dict[str, str] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    extra_body: dict[str, Any] = field(default_factory=dict)

    def log_path(self, folder: Path) -> Path:
        """The file in `folder` for the server's output."""
        return folder / f"{self.name.replace('/', '-').replace(' ', '-')}.log"


Probe: TypeAlias = Callable[[], Awaitable[TimedRecord]]
"""Sends the smallest possible request and returns its record."""


@dataclass(slots=True)
class Launch:
    """A running server. Seconds count from the launch of its command.

    `first_answer_s`: any HTTP answer. `ready_s`: every probe has been answered once; by default
    there is one, a request of one token.
    """

    pid: int
    first_answer_s: float
    ready_s: float
    stop_s: float | None = None

    def to_json(self) -> dict[str, float | None]:
        return {
            "first_answer_s": round(self.first_answer_s, 2),
            "ready_s": round(self.ready_s, 2),
            "stop_s": None if self.stop_s is None else round(self.stop_s, 2),
        }


@contextlib.asynccontextmanager
async def launched(
    server: ServerCommand, log: Path, timeout_s: float = 600.0, probes: Sequence[Probe] = ()
) -> AsyncIterator[Launch]:
    """Start `server` in a session of its own and yield once it serves; stop it on the way out.

    It serves when each of `probes` (by default a completion of one token) has succeeded.

    Its output goes to `log`. Raises RuntimeError when something already listens at its address,
    when it ends early (with the end of its log), or when it does not serve within `timeout_s`.
    """
    origin = Origin.parse(server.url)
    if await _is_listening(origin):
        raise RuntimeError(f"something already listens on port {origin.port}; stop it first")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        started = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", server.command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | server.variables,
            start_new_session=True,
        )
    launch = None
    try:
        async with asyncio.timeout(timeout_s):
            waiting = _wait_until_serving(
                server.name, process, started, log, probes or (text_probe(server),)
            )
            launch = await waiting
        yield launch
    except TimeoutError as error:
        if launch is not None:
            raise
        raise RuntimeError(f"{server.name} did not serve within {timeout_s:g} s") from error
    finally:
        stopping = time.perf_counter()
        await _stop(process)
        if launch is not None:
            launch.stop_s = time.perf_counter() - stopping


async def described(server: ServerCommand) -> dict[str, Any]:
    """A server as results store it: its command with the names of variables, not their values.

    Raises RuntimeError when its version command fails.
    """
    optional = {
        "groups": list(server.groups),
        "models": list(server.models),
        "extra_body": server.extra_body,
    }
    return {
        "name": server.name,
        **{key: value for key, value in optional.items() if value},
        "version": await version_of(server),
        "model": server.model,
        "command": server.command,
    }


async def version_of(server: ServerCommand) -> str | None:
    """The first line that its version command prints; None without one.

    Raises RuntimeError when the command fails.
    """
    if server.version_command is None:
        return None
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", server.version_command),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | server.variables,
    )
    output, _ = await process.communicate()
    lines = output.decode(errors="replace").strip().splitlines()
    if process.returncode or not lines:
        raise RuntimeError(f"the version command of {server.name} failed: {lines[-1:]}")
    return lines[0]


def text_probe(server: ServerCommand, model: str | None = None) -> Probe:
    """A probe that asks for one token of `model`, by default the server's."""
    client = CompletionClient(Target(server.url, model or server.model))
    request = client.encode(PlannedRequest(0, story_prompt(0, 1), 1))

    async def probe() -> RequestRecord:
        record = RequestRecord(0, 1)
        await client.send(request, record, time.perf_counter())
        return record

    return probe


async def _wait_until_serving(
    name: str,
    process: asyncio.subprocess.Process,
    started: float,
    log: Path,
    probes: Sequence[Probe],
) -> Launch:
    first_answer_s = None
    waiting = list(probes)
    while process.returncode is None:
        record = await waiting[0]()
        now_s = time.perf_counter() - started
        if record.status is not None and first_answer_s is None:
            first_answer_s = now_s
        if record.error is None:
            waiting.pop(0)
            if not waiting:
                return Launch(process.pid, first_answer_s or now_s, now_s)
            continue
        if record.status in (400, 401, 403, 404, 422):
            raise RuntimeError(f"{name} refuses the probe: {record.error}")
        await asyncio.sleep(_POLL_S)
    raise RuntimeError(f"{name} ended with status {process.returncode}:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-_LOG_TAIL_CHARS:].strip()


async def _is_listening(origin: Origin) -> bool:
    try:
        _, writer = await asyncio.open_connection(origin.host, origin.port)
    except OSError:
        return False
    writer.close()
    return True


async def _stop(process: asyncio.subprocess.Process) -> None:
    """SIGTERM to the server, then to what it left behind in its session, then SIGKILL.

    Shielded: a cancelled run must not leave a server behind.
    """
    ending = asyncio.ensure_future(_end_session(process))
    try:
        await asyncio.shield(ending)
    except asyncio.CancelledError:
        await ending
        raise


async def _end_session(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(30):
                await process.wait()
    for number in (signal.SIGTERM, signal.SIGKILL):
        _signal_all(process.pid, number)
        for _ in range(100):  # 5 s
            if not _members(process.pid):
                break
            await asyncio.sleep(_POLL_S)
    await process.wait()


def _members(root: int) -> list[int]:
    return [stat.pid for stat in process_trees([root]) if not stat.is_zombie]


def _signal_all(root: int, number: signal.Signals) -> None:
    for pid in _members(root):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def free_port() -> int:
    """Return a port on which nobody listens now: none of those that systems give to outgoing
    connections, one of which might take it before a server does."""
    while True:
        port = secrets.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
