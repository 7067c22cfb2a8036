"""Progress bars while models load, on a terminal only."""

import fcntl
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from engine.contract.status import ModelStatus, Phase
from engine.errors import Failure
from server.app import create_app
from server.process.draining_server import DrainingServer, uvicorn_config
from server.process.listen import Listener
from server.process.start_screen import StartScreen, Terminal
from server.settings import Settings
from tests.helpers.server.fake_engine import FakeEngine

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")

CHILD = """
import asyncio, os, sys
sys.path.insert(0, {here!r})
from tests.helpers.server.fake_engine import FakeEngine
from engine.errors import Failure
from engine.contract.status import Phase
from server.process.serve import run
from server.settings import load_settings
import structlog

class Slow(FakeEngine):
    async def start(self):
        await super().start()
        self.task = asyncio.create_task(self.go_on())

    async def go_on(self):
        self.set_status("b", Phase.LOADING, progress=0.5)
        await asyncio.to_thread(sys.stdin.readline)
        structlog.get_logger("server.x").warning("mind the gap")
        structlog.get_logger("server.x").info("nobody needs this")
        self.set_status("a", {end})
        self.set_status("b", {end})

sys.exit(run(load_settings({given!r}), lambda settings: Slow("a", "b", ready=False)))
"""


def status(phase: Phase, model: str = "m", **changes: object) -> ModelStatus:
    return ModelStatus(model=model, phase=phase, **changes)  # type: ignore[arg-type]


def test_why_a_model_failed_is_said_at_once_and_once() -> None:
    """While others, which may take minutes, go on."""
    out = StringIO()
    console = Console(file=out, force_terminal=True, width=100, no_color=True)
    failed = status(Phase.FAILED, failure=Failure("model_load_error", "the disk is full"))
    with StartScreen("Tandem on x", console) as screen:
        screen.show(status(Phase.LOADING, "other", detail="loading for minutes"))
        for _ in range(3):
            screen.show(failed)
            screen._progress.refresh()
        before = ESCAPE.sub("", out.getvalue())
        assert before.count("m: the disk is full") == 1
    assert ESCAPE.sub("", out.getvalue()).count("m: the disk is full") == 1


def test_one_line_per_model_and_the_reasons_above() -> None:
    out = StringIO()
    console = Console(file=out, force_terminal=True, width=100, no_color=True)
    with StartScreen("Tandem on x", console) as screen:
        for phase in (Phase.STARTING, Phase.DOWNLOADING, Phase.LOADING, Phase.WARMING_UP):
            screen.show(status(phase, progress=0.5, detail="50 [of] 100 MB"))
        screen._progress.refresh()
        screen.show(status(Phase.READY))
        screen.show(status(Phase.LOADING, "other"))
        screen.show(status(Phase.STOPPED, "other"))
        screen.show(
            status(
                Phase.FAILED,
                "org/[n]",
                failure=Failure("corrupt_file", "cut off", hint="looked for /a/b"),
            )
        )
    text = ESCAPE.sub("", out.getvalue())
    assert "50 [of] 100 MB" in text
    last = text[text.rindex("✓ m") :].splitlines()
    assert last[0].split()[:2] == ["✓", "m"]
    assert "ready" in last[0]
    assert last[1].split()[0] == "other" and "unloaded" in last[1]
    assert last[2].split()[:2] == ["✗", "org/[n]"]
    above = [line.strip() for line in text.splitlines()]
    assert above.index("org/[n]: cut off") + 1 == above.index("looked for /a/b")
    assert last[3:] == []
    assert "\x1b[3" not in out.getvalue(), "no colours were wanted"


def test_what_workers_write_comes_out_by_lines(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    with terminal:
        os.write(terminal.workers_stderr, b"first\nsecond \xff\n")
        child = subprocess.run(
            [sys.executable, "-c", "import sys; sys.stderr.write('third')"],
            stderr=terminal.workers_stderr,
            check=True,
        )
        assert child.returncode == 0
    assert capsys.readouterr().err == "first\nsecond \ufffd\nthird"


def run_in_terminal(
    end: str = "Phase.READY",
    env: dict[str, str] | None = None,
    loading: str = "━━━",
    **given: str,
) -> tuple[int, str]:
    """Exit code and all that was shown of a server that is interrupted once it is ready.

    Args:
        loading: what it shows while it loads; it goes on once this is seen.
    """
    here = str(Path(__file__).parents[3])
    code = CHILD.format(here=here, end=end, given={"port": "0", **given})
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    variables = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=side,
        stderr=side,
        env=variables | {"TERM": "xterm-256color"} | (env or {}),
    )
    os.close(side)
    assert process.stdin is not None
    shown, deadline_s, interrupted = "", time.monotonic() + 120, False
    while time.monotonic() < deadline_s:
        try:
            data = os.read(main, 65536)
        except OSError:  # the other side is closed
            break
        shown += data.decode(errors="replace")
        if loading in shown:
            process.stdin.close()
        # Once only: a second interrupt is the impatient user's, who does not wait for the end.
        if not interrupted and any(word in shown for word in ("Ready. Try", '"ready"', "try_with")):
            process.send_signal(signal.SIGINT)
            interrupted = True
    os.close(main)
    return process.wait(60), shown


@pytest.mark.e2e
def test_a_terminal_sees_bars_and_warnings_and_no_log_lines() -> None:
    exit_code, shown = run_in_terminal()
    text = ESCAPE.sub("", shown)
    assert exit_code == 0, text
    assert "━━━" in text
    assert "✓ a" in text
    assert "✓ b" in text
    assert "mind the gap" in text
    assert "nobody needs this" not in text
    assert "model loading" not in text
    assert ' chat "Write one sentence' in text
    assert "\x1b[3" in shown


@pytest.mark.parametrize(
    ("num_requests", "told"),
    [(0, ""), (1, "Finishing 1 request; "), (12, "Finishing 12 requests; ")],
)
def test_an_interrupt_says_what_is_waited_for_and_how_not_to(
    num_requests: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings()
    app = create_app(settings, FakeEngine())
    app.state.tandem.admission.num_requests = num_requests
    with socket.socket() as unused:
        listener = Listener(unused, "http://127.0.0.1:8000")
        screen = StartScreen("Tandem on x", Console(file=StringIO()))
        server = DrainingServer(uvicorn_config(settings, app), app, listener, screen)
        for _ in range(3):
            server._tell_of_draining()
    assert capsys.readouterr().err == (f"{told}press Ctrl-C again to stop now.\n" if told else "")


@pytest.mark.e2e
def test_no_color_is_heeded() -> None:
    _, shown = run_in_terminal(env={"NO_COLOR": "1"})
    assert "━━━" in shown
    assert not re.search(r"\x1b\[[0-9;]*[39][0-7]m", shown), shown[:2000]


@pytest.mark.e2e
@pytest.mark.parametrize("given", [{"log_format": "json"}, {"log_format": "console"}])
def test_those_who_ask_for_a_format_get_log_lines(given: dict[str, str]) -> None:
    _, shown = run_in_terminal(loading="model loading", **given)
    assert "model loading" in shown
    assert "━━━" not in shown


@pytest.mark.e2e
def test_without_any_model_the_reason_is_the_last_word() -> None:
    failure = "Failure('corrupt_file', 'it is cut off', hint='at /a/b')"
    exit_code, shown = run_in_terminal(f"Phase.FAILED, failure={failure}")
    text = ESCAPE.sub("", shown)
    assert exit_code == 1
    assert text.count("a: it is cut off") == 1
    assert "at /a/b" in text
    assert "Ready" not in text
