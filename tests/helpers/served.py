"""Runs the installed command on a free port, watched for stalls (`stalls`)."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from loadtest.launch import free_port
from tests.helpers import stalls

START_TIMEOUT_S = 300
STOP_TIMEOUT_S = 120
"""The time to wait for a stop, longer than any drain that a test asks for."""
ANSWER_TIMEOUT_S = 60.0
"""Machines that run tests may be busy with much else."""
_POLL_S = 0.05
_PROGRAM = str(Path(__file__).with_name("watched_server.py"))
# The gauges that show that no text is being written and no block is held.
TEXT_WORK = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_ratio")


class Server:
    """One `tandem serve` process.

    Args:
        command: another one that serves at `port`; nothing watches it for stalls.
    """

    def __init__(
        self, log: Path, *args: str, port: int | None = None, command: Sequence[str] = ()
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = log
        self._stalls_path = log.with_suffix(".stalls")
        self._num_stalls = 0
        serve = (sys.executable, _PROGRAM, "serve", "--port", str(self.port))
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*(command or serve), *args],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "COLUMNS": "200", stalls.VARIABLE: str(self._stalls_path)},
                start_new_session=True,
            )
        self.started_s = time.monotonic()

    def get(self, path: str, timeout_s: float = ANSWER_TIMEOUT_S) -> tuple[int, dict]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=timeout_s) as response:
                return response.status, json.loads(response.read() or b"{}")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or b"{}")

    def wait_for(self, path: str, timeout_s: float = START_TIMEOUT_S) -> dict:
        """Poll until the path answers 200."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            if self.process.poll() is not None:
                pytest.fail(f"the server ended with {self.process.returncode}:\n{self.log()}")
            with contextlib.suppress(OSError, json.JSONDecodeError):  # a proxy may answer first
                status, body = self.get(path)
                if status == 200:
                    return body
            time.sleep(_POLL_S)
        return pytest.fail(f"{path} did not answer 200 in {timeout_s} s:\n{self.log()}")

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def worker_pids(self) -> list[int]:
        """The processes of the models, in the order in which they were started."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        found = []
        for pid in map(int, children.split()):
            with contextlib.suppress(FileNotFoundError):  # it has ended meanwhile
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                found += [pid] if b"engine.worker.loop" in command else []
        return found

    @contextlib.contextmanager
    def workers_stopped(self) -> Iterator[list[int]]:
        """Stop the models' processes for a while, in which no request comes to its end."""
        pids = self.worker_pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield pids
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def abandon(self, path: str, once: Callable[[], object], **request: Any) -> None:
        """Send a request, given as to httpx, and hang up once a condition holds."""
        made = httpx.Request("POST", self.url + path, **request)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_TIMEOUT_S)
        with contextlib.closing(connection):
            connection.request("POST", path, made.read(), dict(made.headers))
            self.wait_until(once)

    def metric(self, name: str, **labels: str) -> float:
        """Sum a metric's samples that carry these labels."""
        text = httpx.get(f"{self.url}/metrics", timeout=ANSWER_TIMEOUT_S).text
        total = 0.0
        for line in text.splitlines():
            match = re.match(rf"{name}(?:\{{(.*)\}})? (\S+)$", line)
            if match and all(f'{k}="{v}"' in (match[1] or "") for k, v in labels.items()):
                total += float(match[2])
        return total

    def wait_until(self, is_so: Callable[[], object], timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """Wait until a condition holds, which must not pass by unseen. A failure shows the server's
        log."""
        deadline_s = time.monotonic() + timeout_s
        while not is_so():
            assert time.monotonic() < deadline_s, f"not so in {timeout_s} s:\n{self.log()}"
            time.sleep(_POLL_S)

    def wait_idle(self, names: Sequence[str] = TEXT_WORK) -> None:
        """Wait until these gauges are zero."""
        self.wait_until(lambda: not any(self.metric(f"tandem_{name}") for name in names))

    def num_in_flight(self) -> int:
        """How many requests hold a place at a model, for a drain as well."""
        return int(self.get("/load")[1]["server_load"])

    def wait_until_nobody_is_in(self) -> None:
        """Wait until no request holds a place at a model, as a drain does."""
        self.wait_until(lambda: self.num_in_flight() == 0, STOP_TIMEOUT_S)

    def new_stalls(self) -> list[str]:
        """Return the stalls found since the last call."""
        found = stalls.findings(self._stalls_path)
        new, self._num_stalls = found[self._num_stalls :], len(found)
        return new

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
                pytest.fail(f"the server did not end in {STOP_TIMEOUT_S} s:\n{self.log()}")
        return self.process.returncode


class Stream(threading.Thread):
    """The answer to a streamed request, read in the background until it ends, or until the `with`
    block that it is used in.

    Attributes:
        events: the data of its events so far.
    """

    def __init__(self, server: Server, path: str = "/v1/completions", **body: Any) -> None:
        super().__init__()
        self.events: list[str] = []
        self._server = server
        self._url, self._body = server.url + path, body | {"stream": True}
        self._is_left = threading.Event()
        self.start()

    def run(self) -> None:
        with httpx.stream("POST", self._url, json=self._body, timeout=ANSWER_TIMEOUT_S) as answer:
            for line in answer.iter_lines():
                if self._is_left.is_set():
                    return
                if line.startswith("data: "):
                    self.events.append(line.removeprefix("data: "))

    def wait_for_events(self, number: int = 1) -> None:
        """Wait until that many have come."""
        self._server.wait_until(lambda: len(self.events) >= number)

    def error(self) -> dict[str, Any]:
        """Wait for its end, and give the error that has ended it."""
        self.join(ANSWER_TIMEOUT_S)
        assert not self.is_alive()
        *_, last, end = self.events
        assert end == "[DONE]"
        return json.loads(last)["error"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_left.set()
        self.join()
