"""Runs the installed command on a free port, watched for stalls (`stalls`)."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import pytest

from loadtest.launch import free_port
from tests.helpers import stalls

START_TIMEOUT_S = 300
STOP_TIMEOUT_S = 120
"""The time to wait for a stop, longer than any drain that a test asks for."""
_POLL_S = 0.05
_PROGRAM = str(Path(__file__).with_name("watched_server.py"))
# The gauges that show that no text is being written and no block is held.
TEXT_WORK = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_ratio")


class Server:
    """One `tandem serve` process."""

    def __init__(self, log: Path, *args: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = log
        self._stalls_path = log.with_suffix(".stalls")
        self._num_stalls = 0
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, _PROGRAM, "serve", "--port", str(self.port), *args],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "COLUMNS": "200", stalls.VARIABLE: str(self._stalls_path)},
                start_new_session=True,
            )
        self.started_s = time.monotonic()

    def get(self, path: str, timeout_s: float = 10.0) -> tuple[int, dict]:
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
            with contextlib.suppress(OSError):
                status, body = self.get(path)
                if status == 200:
                    return body
            time.sleep(_POLL_S)
        return pytest.fail(f"{path} did not answer 200 in {timeout_s} s:\n{self.log()}")

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def worker_pids(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [
            pid
            for pid in map(int, children.split())
            if b"engine.worker.loop" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]

    def metric(self, name: str, **labels: str) -> float:
        """Sum a metric's samples that carry these labels."""
        text = httpx.get(f"{self.url}/metrics", timeout=10).text
        total = 0.0
        for line in text.splitlines():
            match = re.match(rf"{name}(?:\{{(.*)\}})? (\S+)$", line)
            if match and all(f'{k}="{v}"' in (match[1] or "") for k, v in labels.items()):
                total += float(match[2])
        return total

    def wait_until(self, is_so: Callable[[], object], timeout_s: float = 60.0) -> None:
        """Wait until a condition holds. A failure shows the server's log."""
        deadline_s = time.monotonic() + timeout_s
        while not is_so():
            assert time.monotonic() < deadline_s, f"not so in {timeout_s} s:\n{self.log()}"
            time.sleep(_POLL_S)

    def wait_idle(self, timeout_s: float, names: Sequence[str] = TEXT_WORK) -> None:
        """Wait until these gauges are zero."""
        self.wait_until(lambda: not any(self.metric(f"tandem_{name}") for name in names), timeout_s)

    def wait_until_nobody_is_in(self) -> None:
        """Wait until no request holds a place at a model, as a drain does."""
        self.wait_until(lambda: self.get("/load")[1]["server_load"] == 0, STOP_TIMEOUT_S)

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
