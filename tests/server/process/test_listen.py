"""The socket: where it listens, what is said when it cannot."""

import errno
import os
import resource
import socket

import pytest

from server.process.listen import ListenProblem, _explain, allow_open_files, open_listener
from server.settings import Settings


@pytest.fixture
def listen():
    listeners = []

    def start(**settings):
        listener = open_listener(Settings(**settings))
        listeners.append(listener)
        return listener

    yield start
    for listener in listeners:
        listener.close()


def test_a_free_port_and_its_address(listen):
    listener = listen(port=0)
    host, port = listener.socket.getsockname()
    assert host == "127.0.0.1"
    assert listener.url == f"http://127.0.0.1:{port}"
    clients = [socket.create_connection((host, port), timeout=60) for _ in range(16)]
    for client in clients:  # they wait in the backlog before anybody accepts
        client.close()


def test_a_server_that_is_started_again_gets_its_port_at_once(listen):
    first = listen(port=0)
    address = first.socket.getsockname()
    with socket.create_connection(address, timeout=60):
        accepted, _ = first.socket.accept()
        accepted.close()  # the system keeps the address of who closes first for a minute
    first.close()
    assert listen(port=address[1]).socket.getsockname() == address


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="the system has no such limit")
def test_little_is_kept_for_a_reader_that_has_stopped(listen):
    listener = listen(port=0)
    with socket.create_connection(listener.socket.getsockname(), timeout=60):
        accepted, _ = listener.socket.accept()
        with accepted:
            kept = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
    assert kept == 128 << 10


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            errno.EADDRINUSE,
            "port 80 is in use on h; stop the program that uses it, or choose another --port",
        ),
        (errno.EACCES, "this user may not listen on port 80; choose a --port above 1023"),
        (
            errno.EADDRNOTAVAIL,
            "--host h is not an address of this machine; use one of its addresses, or 0.0.0.0 "
            "for all",
        ),
        (errno.ENOBUFS, f"cannot listen on h port 80: {os.strerror(errno.ENOBUFS)}"),
    ],
)
def test_what_is_said_of_an_address_that_cannot_be_had(code, said):
    assert _explain(OSError(code, os.strerror(code)), "h", 80) == said


@pytest.mark.parametrize(
    ("host", "prefix"),
    [
        ("0.0.0.0", "http://127.0.0.1:"),
        ("::", "http://[::1]:"),
        ("::1", "http://[::1]:"),
        ("localhost", "http://"),
    ],
)
def test_the_address_is_one_that_a_client_can_use(listen, host, prefix):
    if ":" in host and not socket.has_dualstack_ipv6():
        prefix = "http://"
        host = "127.0.0.1"
    assert listen(host=host, port=0).url.startswith(prefix)


def test_https(listen):
    assert listen(port=0, ssl_certfile=__file__).url.startswith("https://")


def test_a_port_in_use_is_one_line(listen):
    port = listen(port=0).socket.getsockname()[1]
    with pytest.raises(ListenProblem, match=rf"port {port} is in use.*--port"):
        listen(port=port)


@pytest.mark.parametrize("host", ["203.0.113.7", "..", "a" * 300])
def test_a_host_that_is_not_ours_is_one_line(listen, host):
    with pytest.raises(ListenProblem, match="not an address of this machine"):
        listen(host=host, port=0)


def test_unix_socket(listen, tmp_path):
    path = tmp_path / "server.sock"
    listener = listen(uds=path)
    with pytest.raises(ListenProblem, match="in use"):
        listen(uds=path)
    listener.close()
    assert not path.exists()


def test_a_socket_file_left_behind_is_replaced(listen, tmp_path):
    path = tmp_path / "server.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    assert path.is_socket()
    listen(uds=path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(path))


def test_a_file_that_is_not_a_socket_is_left_alone(listen, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(ListenProblem, match="--uds"):
        listen(uds=path)
    assert path.read_text() == "mine"
    with pytest.raises(ListenProblem, match="--uds"):
        listen(uds=tmp_path / ("long" * 50))


@pytest.mark.parametrize(
    ("soft", "hard", "num_connections", "new_soft", "possible"),
    [
        (1024, 1 << 20, 4096, 4096 + 256, 4096),
        (1024, 2048, 4096, 2048, 2048 - 256),
        (1024, resource.RLIM_INFINITY, 4096, 4096 + 256, 4096),
        (1 << 20, 1 << 20, 4096, 1 << 20, (1 << 20) - 256),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 4096, resource.RLIM_INFINITY, 4096),
    ],
)
def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be(
    monkeypatch, soft, hard, num_connections, new_soft, possible
):
    limits = [soft, hard]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, new: limits.__setitem__(0, new[0]))
    assert allow_open_files(num_connections) == possible
    assert limits[0] == new_soft
