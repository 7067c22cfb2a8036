"""A server that ends by itself is a problem of its seed, and the next seed has another server."""

import contextlib
import os
import random
import signal
import sys
import textwrap
from pathlib import Path

import httpx
import pytest

from loadtest.launch import ServerCommand, launched
from loadtest.record import RequestRecord
from tools.endurance import chaos
from tools.endurance.chaos import Chaos
from tools.endurance.faults import EFFECTS, Effect, Fault
from tools.endurance.order import Names
from tools.endurance.served import Material, Server

# Answers everything with one text, picture and embedding. Ends when its work is asked for, once the
# file that its second argument names is there.
SERVER = textwrap.dedent("""\
    import json, os, sys
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    choice = {"text": "", "message": {"content": ""}, "finish_reason": "stop"}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            if "images" in self.path:
                self.answer({"data": [{"b64_json": ""}]})
            elif "embeddings" in self.path:
                self.answer({"data": [{"embedding": [1.0]}]})
            else:
                self.answer({"choices": [choice]})

        def do_GET(self):
            if os.path.exists(sys.argv[2]):
                os.remove(sys.argv[2])
                print(sys.argv[3], flush=True)
                os._exit(7)
            self.answer({})

        def answer(self, document):
            body = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    print(sys.argv[3], flush=True)
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
""")


class Ending:
    """A Chaos on such servers, which say `words` before they end."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.words = f"last words {random.random()}"
        self.mine = folder / "mine"
        self.pids: list[int] = []
        self._program = folder / "server.py"
        self._program.write_text(SERVER)
        names = Names("text", "pictures", "poet", "visitor", "guest")
        monkeypatch.setattr(chaos, "running", self._running)
        monkeypatch.setattr(chaos, "can_mount", lambda: False)
        monkeypatch.setattr(chaos, "tiny_material", lambda *_: Material(folder, names, ()))
        monkeypatch.setattr(chaos, "clock_library", lambda _: folder)
        monkeypatch.setattr(chaos, "draw_faults", self._faults)
        self.faults: dict[int, str] = {}
        self.chaos = Chaos(folder, folder / "log", lambda _: None)

    def _faults(self, seed: int) -> list[Fault]:
        return [Fault(self.faults[seed], 0, 0, 0)] if seed in self.faults else []

    @contextlib.asynccontextmanager
    async def _running(self, material, log, prefix, port, variables):
        async def probe():
            async with httpx.AsyncClient(trust_env=False) as client:
                try:
                    await client.post(f"http://127.0.0.1:{port}", json={})
                except httpx.HTTPError as error:
                    return RequestRecord(0, 1, error=str(error))
            return RequestRecord(0, 1, status=200)

        command = f"exec {sys.executable} {self._program} {port} {self.mine} '{self.words}'"
        start = ServerCommand("ending", command, f"http://127.0.0.1:{port}", "text")
        async with launched(start, log, probes=(probe,)) as launch:
            self.pids.append(launch.pid)
            yield Server(f"http://127.0.0.1:{port}", launch, "no mark", log)


@pytest.fixture
def ending(tmp_path, monkeypatch):
    return Ending(tmp_path, monkeypatch)


def own_ends(run):
    return [problem for problem in run.problems if "by itself" in problem]


async def test_a_server_that_ends_when_it_is_looked_at(ending):
    async with ending.chaos as test:
        ending.mine.touch()
        run = await test.run(1)
        assert own_ends(run) == [
            f"the server had ended by itself with status 7:\n{ending.words}\n{ending.words}"
        ]
        run = await test.run(2)
        assert not own_ends(run)
        assert not [problem for problem in run.problems if "no right answers" in problem]
        assert await test.end() == []
    assert len(set(ending.pids)) == 2


async def test_a_server_that_ends_at_a_fault(ending, monkeypatch):
    def end(ground, rng):
        os.kill(ground.server.pid, signal.SIGABRT)
        with contextlib.suppress(ChildProcessError):  # its end is noticed elsewhere, too
            os.waitid(os.P_PID, ground.server.pid, os.WEXITED | os.WNOWAIT)
        return lambda: None

    monkeypatch.setitem(EFFECTS, "a fault", Effect(end))
    ending.faults[1] = "a fault"
    async with ending.chaos as test:
        run = await test.run(1)
        assert own_ends(run) == [
            f"a fault: the server had ended by itself with status -6:\n{ending.words}"
        ]
        assert not own_ends(await test.run(2))
    assert len(set(ending.pids)) == 2
