"""A network for one server and its clients, whose packets can be dropped, delayed and refused.

It is the loopback of a network namespace of their own, so nothing else on the machine sees it. The
kernel's own TCP meets the faults, on both sides: it sends again, waits, and gives up.
"""

import functools
import os
import subprocess
import sys
from dataclasses import dataclass

_UNSHARE = ("unshare", "--map-root-user", "--net")
_ENTERED = "ENDURANCE_NETWORK"
_UP = "ip link set lo mtu 1500 up"
"""With the size of packets that networks have; a loopback's hold a whole picture."""
_SLOW = "tc qdisc add dev lo root tbf rate {}kbit burst 3000 latency 2s"
_RULES = """\
table inet faults {{
    chain input {{
        type filter hook input priority 0
        {}
    }}
}}
"""
_MEND = "nft flush ruleset; tc qdisc del dev lo root 2>&-; true"


def enter() -> None:
    """Start this program again in such a network, if it is not in one and the system permits it."""
    if can_have_network() and not has_entered():
        os.environ[_ENTERED] = "1"
        os.execvp(_UNSHARE[0], [*_UNSHARE, sys.executable, *sys.orig_argv[1:]])


def has_entered() -> bool:
    return _ENTERED in os.environ


@functools.cache
def can_have_network() -> bool:
    """Whether this system lets us make such a network, and has what its faults need: ip, tc and its
    token bucket, nft."""
    trial = f"{_UP} && {_SLOW.format(64)} && nft -f -"
    rules = _RULES.format("tcp dport 1 numgen random mod 100 < 1 drop").encode()
    try:
        done = subprocess.run([*_UNSHARE, "sh", "-c", trial], input=rules, capture_output=True)
    except OSError:
        return False
    return done.returncode == 0


@dataclass(frozen=True, slots=True)
class Network:
    """What happens to the packets between clients and the server at a port, from now on.

    Only for a process in a network of its own; see `enter`.
    """

    port: int

    def __post_init__(self) -> None:
        _shell(_UP)

    def drop(self, percent: int) -> None:
        """Drop packets of both sides at random."""
        draw = f"numgen random mod 100 < {percent} drop"
        self._rule(f"tcp dport {self.port} {draw}", f"tcp sport {self.port} {draw}")

    def silence_clients(self) -> None:
        self._rule(f"tcp dport {self.port} drop")

    def silence_server(self) -> None:
        self._rule(f"tcp sport {self.port} drop")

    def hide_ends(self) -> None:
        """Let the server not learn that clients have left."""
        self._rule(f"tcp dport {self.port} tcp flags fin,rst drop")

    def reset(self) -> None:
        """Refuse what clients send, as a middlebox does that forgot all connections."""
        self._rule(f"tcp dport {self.port} tcp flags & rst == 0 reject with tcp reset")

    def slow(self, kbit: int) -> None:
        """Let all packets wait for a line with this rate, up to two seconds; more are dropped."""
        _shell(_SLOW.format(kbit))

    def mend(self) -> None:
        _shell(_MEND)

    def _rule(self, *rules: str) -> None:
        _shell("nft -f -", _RULES.format("\n        ".join(rules)))


def _shell(command: str, text: str = "") -> None:
    subprocess.run(["sh", "-c", command], input=text.encode(), check=True)
