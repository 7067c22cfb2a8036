"""Findings about the port and the limit on open files."""

import http.server
import json
import resource
import socket
import threading

import pytest

from server.doctor import address
from server.settings import load_settings


@pytest.fixture
def taken():
    """A port on which somebody listens and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_free_port_is_left_free():
    settings = load_settings({"port": 0})
    assert address.port(settings).health == "ok"


def test_a_port_in_use_and_another_that_is_free(taken, monkeypatch):
    monkeypatch.setattr(address, "_ANSWER_S", 0.05)
    finding = address.port(load_settings({"port": taken}))
    assert finding.health == "broken"
    assert f"port {taken} is in use" in finding.found
    command, _, other = finding.fix.rpartition(" ")
    assert command == "tandem serve --port"
    with socket.create_server(("127.0.0.1", int(other))):
        pass


@pytest.mark.parametrize(
    ("answer", "health"),
    [({"phase": "ready", "models": []}, "limited"), ({"other": 1}, "broken"), ([1], "broken")],
)
def test_a_server_of_ours_is_recognised(answer, health):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(answer).encode()
            self.send_response(503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            finding = address.port(load_settings({"port": server.server_port}))
        finally:
            server.shutdown()
            thread.join()
    assert finding.health == health
    assert "--port" in finding.fix


def test_an_address_that_is_not_here():
    finding = address.port(load_settings({"host": "192.0.2.1", "port": 0}))
    assert finding.health == "broken"
    assert "--host 192.0.2.1" in finding.found and "0.0.0.0" in finding.fix


def test_a_socket_file_in_a_missing_folder(tmp_path):
    finding = address.port(load_settings({"uds": tmp_path / "no" / "socket"}))
    assert finding.health == "broken" and finding.fix


@pytest.mark.parametrize(("hard", "health"), [(1 << 20, "ok"), (1000, "limited"), (200, "broken")])
def test_open_files(hard, health, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (min(hard, 1024), hard))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: None)
    finding = address.connections(load_settings({}))
    assert finding.health == health
    assert (finding.fix is None) == (health == "ok")
