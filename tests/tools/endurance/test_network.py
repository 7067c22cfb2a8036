"""Packets are dropped, delayed and refused in a network of our own, until it is mended."""

import os
import subprocess
import sys
import textwrap

import pytest

from tests.helpers.plain_python import ROOT
from tools.endurance.network import can_have_network

pytestmark = pytest.mark.skipif(
    not can_have_network(), reason="this system gives us no network of our own (unshare, tc, nft)"
)
SETUP = """\
import os, socket, time
import pytest
from tools.endurance import network
network.enter()
assert network.has_entered()
listening = socket.create_server(("127.0.0.1", 0))
port = listening.getsockname()[1]
net = network.Network(port)

def connected():
    client = socket.create_connection(("127.0.0.1", port), timeout=30)
    server, _ = listening.accept()
    server.settimeout(30)
    client.settimeout(30)
    return client, server

def passes(sender, receiver, size=1):
    data = os.urandom(size)
    sender.sendall(data)
    return received(receiver, size) == data

def received(receiver, size):
    with receiver.makefile("rb") as file:
        return file.read(size)
"""


def in_own_network(program):
    command = [sys.executable, "-c", SETUP + textwrap.dedent(program)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_it_is_no_other_processs_network():
    found = [
        subprocess.run(
            [sys.executable, "-c", f"{setup}print(os.readlink('/proc/self/ns/net'))"],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for setup in (SETUP, "import os\n")
    ]
    assert found[0] != found[1]
    assert found[1].strip() == os.readlink("/proc/self/ns/net")


def test_lost_packets_are_sent_again():
    in_own_network("""
        def num_sent_again():
            lines = open("/proc/self/net/snmp").read().splitlines()
            names, values = (line.split() for line in lines if line.startswith("Tcp:"))
            return int(values[names.index("RetransSegs")])

        client, server = connected()
        before = num_sent_again()
        net.drop(20)
        for _ in range(100):
            assert passes(client, server) and passes(server, client)
            if num_sent_again() > before:
                break
        else:
            raise AssertionError("none was lost")
        net.mend()
        assert passes(*connected(), 50_000)
    """)


@pytest.mark.parametrize(
    ("silence", "sender"), [("silence_clients", "client"), ("silence_server", "server")]
)
def test_one_side_is_not_heard_until_it_is_mended(silence, sender):
    in_own_network(f"""
        client, server = connected()
        receiver = server if {sender} is client else client
        net.{silence}()
        {sender}.sendall(b"late")
        receiver.settimeout(0.1)
        with pytest.raises(TimeoutError):
            receiver.recv(4)
        net.mend()
        receiver.settimeout(30)
        assert received(receiver, 4) == b"late"
    """)


def test_the_server_does_not_learn_that_a_client_has_left_until_it_is_mended():
    in_own_network("""
        client, server = connected()
        net.hide_ends()
        assert passes(client, server)
        client.close()
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.recv(1)
        net.mend()
        server.settimeout(30)
        assert server.recv(1) == b""
    """)


def test_connections_are_reset_on_both_sides():
    in_own_network("""
        client, server = connected()
        net.reset()
        with pytest.raises(ConnectionRefusedError):
            connected()
        server.sendall(b"answer")
        with pytest.raises(ConnectionResetError):
            while client.recv(6):  # what came before the refusal of its receipt
                pass
        with pytest.raises(ConnectionResetError):
            server.recv(1)
        net.mend()
        assert passes(*connected())
    """)


def test_packets_wait_for_a_slow_line():
    in_own_network("""
        client, server = connected()
        net.slow(1024)
        began = time.monotonic()
        assert passes(client, server, 64_000)
        assert time.monotonic() - began > 0.4  # 128 kB a second, after a burst of three
        net.mend()
        assert passes(*connected(), 50_000)
    """)
