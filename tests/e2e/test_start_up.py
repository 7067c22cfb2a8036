"""The first minutes of a user: what `tandem serve` prints and when it answers."""

import json
import subprocess

import pytest

pytestmark = pytest.mark.e2e


def test_it_is_alive_while_loading_and_the_commands_it_suggests_work(start_server, tmp_path):
    server = start_server(wait=False)
    server.wait_for("/health")
    status, body = server.get("/ready")
    assert status == 503, body
    assert body["phase"] in {"starting", "loading", "downloading", "warming_up"}
    server.wait_for("/ready")
    server.wait_until(lambda: '"try_with"' in server.log())
    [ready] = [line for line in server.log().splitlines() if '"try_with"' in line]
    chat, draw = json.loads(ready)["try_with"]
    draw = draw.replace("image.png", f"{tmp_path}/image.png")
    for command in (chat, draw):
        printed = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, timeout=300, check=True
        )
        assert printed.stdout.strip()
    assert (tmp_path / "image.png").read_bytes().startswith(b"\x89PNG")


def test_an_occupied_port_is_one_clear_line(server, start_server):
    second = start_server("--port", str(server.port), wait=False)
    assert second.process.wait(120) != 0
    assert str(server.port) in second.log()
    assert "Traceback" not in second.log()
