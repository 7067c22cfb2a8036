"""Faults that befall a running server, and what clients may notice of each."""

import contextlib
import os
import random
import resource
import signal
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loadtest.processes import PROC
from tools.endurance.disk import Disk
from tools.endurance.network import Network
from tools.endurance.sample import processes_of
from tools.endurance.served import Server

NUM_FAULTS = 2
"""Faults of a seed."""
WORKER_TIMEOUT_S = 15
"""The server's `--worker-timeout-s`: how long a silent worker is waited for."""
KILL, STOP = signal.SIGKILL, signal.SIGSTOP
_BRIEF_S = (0.5, 2.5)
_JUMPS_S = (-86_400, -3_600, 3_600, 86_400 * 400)

_WORKER_LOST = frozenset({"engine_dead", "model_not_ready"})
_TEMPLATE_LOST = frozenset({"chat_template_failed"})


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault as a seed draws it.

    Attributes:
        after_s: seconds of traffic before it.
        hold_s: how long it lasts.
        seed: of what else is drawn once the server's processes and files are known.
    """

    name: str
    after_s: float
    hold_s: float
    seed: int


@dataclass(slots=True)
class Ground:
    """What faults are done to."""

    server: Server
    disk: Disk | None
    network: Network | None
    clock: Path

    def lacks(self, part: "Part | None") -> bool:
        """Whether this system lets us have no such part."""
        return part is not None and getattr(self, part) is None

    def pids(self, kind: str) -> list[int]:
        """The processes of a kind, oldest first."""
        return sorted(one.pid for one in processes_of(self.server.pid) if one.kind == kind)


Part = Literal["disk", "network"]
Undo = Callable[[], None]
Do = Callable[[Ground, random.Random], Undo]


@dataclass(frozen=True, slots=True)
class Effect:
    """How a fault is made, and what is right while it lasts and until the server has recovered.

    Attributes:
        codes: of errors that clients may get.
        may_lose: whether connections may be refused or end without an answer.
        needs: what of the ground it is done to, beside the server.
        ends_server: the signal that the server gets; it is then started again.
        extra_s: how much longer than a model's load the recovery may take.
        sleeps: whether the text model then starts anew, and so reads the files on the disk.
    """

    do: Do
    codes: frozenset[str] = frozenset()
    may_lose: bool = False
    needs: Part | None = None
    ends_server: signal.Signals | None = None
    extra_s: float = 0.0
    sleeps: bool = False


def draw_faults(seed: int) -> list[Fault]:
    """The faults of a seed, always the same."""
    rng = random.Random(f"faults {seed}")
    return [
        Fault(
            rng.choice(sorted(EFFECTS)),
            after_s=round(rng.uniform(0.5, 2.5), 2),
            hold_s=round(rng.uniform(*_BRIEF_S), 2),
            seed=rng.randrange(2**31),
        )
        for _ in range(NUM_FAULTS)
    ]


def _signalling(kind: str, number: signal.Signals) -> Do:
    def do(ground: Ground, rng: random.Random) -> Undo:
        pids = ground.pids(kind)
        if not pids:
            return _nothing
        pid = rng.choice(pids)
        _signal(pid, number)
        return (lambda: _signal(pid, signal.SIGCONT)) if number == STOP else _nothing

    return do


def _stopping_for_good(kind: str) -> Do:
    """Stop a process and never let it continue: the server must notice by itself."""

    def do(ground: Ground, rng: random.Random) -> Undo:
        if pids := ground.pids(kind):
            _signal(rng.choice(pids), signal.SIGSTOP)
        return _nothing

    return do


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _nothing() -> None:
    pass


def _full_disk(ground: Ground, rng: random.Random) -> Undo:
    assert ground.disk is not None
    ground.disk.fill()
    return ground.disk.free


def _read_only_disk(ground: Ground, rng: random.Random) -> Undo:
    assert ground.disk is not None
    ground.disk.make_read_only()
    return ground.disk.make_writable


def _few_descriptors(kind: str) -> Do:
    """Let a process open hardly anything more."""

    def do(ground: Ground, rng: random.Random) -> Undo:
        pids = ground.pids(kind)
        if not pids:
            return _nothing
        pid = rng.choice(pids)
        numbers = [int(name) for name in os.listdir(PROC / str(pid) / "fd")]
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        most = len(numbers) + rng.randint(0, 3)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, before[1]))

        def undo() -> None:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, before)

        return undo

    return do


def _corrupt_store(ground: Ground, rng: random.Random) -> Undo:
    """Damage half of the files of cached prefixes, each in one of four ways."""
    assert ground.disk is not None
    files = sorted(one for one in (ground.disk.outside / "kv").rglob("*") if one.is_file())
    for path in rng.sample(files, len(files) // 2):
        with contextlib.suppress(FileNotFoundError):  # the server makes room
            damage(path, rng)
    return _nothing


def damage(path: Path, rng: random.Random) -> None:
    """Flip a bit, cut the end off, fill with zeros, or exchange the contents for nonsense."""
    contents = bytearray(path.read_bytes())
    match rng.randrange(4):
        case 0 if contents:
            place = rng.randrange(len(contents))
            contents[place] ^= 1 << rng.randrange(8)
        case 1 if contents:
            contents = contents[: rng.randrange(len(contents))]
        case 2:
            contents = bytearray(len(contents))
        case _:
            contents = bytearray(rng.randbytes(len(contents)))
    with path.open("r+b") as file:
        file.write(contents)
        file.truncate()


def _jump(ground: Ground, rng: random.Random) -> Undo:
    """Set the wall clock back or forth, and then right again."""
    move_clock(ground.clock, rng.choice(_JUMPS_S))
    return lambda: move_clock(ground.clock, 0)


def move_clock(clock: Path, seconds: int) -> None:
    """Write the file that `moved_clock.c` reads, in place: processes have it mapped."""
    clock.touch()
    with clock.open("r+b") as file:
        file.write(struct.pack("=q", seconds))


def _drop_packets(ground: Ground, rng: random.Random) -> Undo:
    assert ground.network is not None
    ground.network.drop(rng.choice((5, 20, 50)))
    return ground.network.mend


def _slow_packets(ground: Ground, rng: random.Random) -> Undo:
    assert ground.network is not None
    ground.network.slow(rng.choice((64, 256, 1024)))
    return ground.network.mend


def _half_open(ground: Ground, rng: random.Random) -> Undo:
    """Let one side hear nothing of the other, or the server not hear that clients leave."""
    network = ground.network
    assert network is not None
    rng.choice((network.silence_clients, network.silence_server, network.hide_ends))()
    return network.mend


def _reset_connections(ground: Ground, rng: random.Random) -> Undo:
    assert ground.network is not None
    ground.network.reset()
    return ground.network.mend


def _none(ground: Ground, rng: random.Random) -> Undo:
    return _nothing


EFFECTS = {
    "kill a worker": Effect(_signalling("worker", KILL), _WORKER_LOST),
    "kill a template process": Effect(_signalling("template", KILL), _TEMPLATE_LOST),
    "kill a reader process": Effect(_signalling("reader", KILL)),
    "kill a picture process": Effect(_signalling("pictures", KILL), frozenset({"invalid_value"})),
    "kill the server": Effect(_none, _WORKER_LOST, may_lose=True, ends_server=KILL),
    "restart the server": Effect(
        _none,
        _WORKER_LOST | {"draining"},
        may_lose=True,
        ends_server=signal.SIGTERM,
    ),
    "stop a worker briefly": Effect(_signalling("worker", STOP)),
    "stop a template process briefly": Effect(_signalling("template", STOP)),
    "stop a reader process briefly": Effect(_signalling("reader", STOP)),
    "stop a picture process briefly": Effect(_signalling("pictures", STOP)),
    "stop the server briefly": Effect(_signalling("server", STOP)),
    "stop a worker for good": Effect(
        _stopping_for_good("worker"), _WORKER_LOST, extra_s=2 * WORKER_TIMEOUT_S
    ),
    "full disk": Effect(_full_disk, needs="disk"),
    "read-only disk": Effect(_read_only_disk, needs="disk"),
    "few descriptors for the server": Effect(_few_descriptors("server"), may_lose=True),
    "few descriptors for a worker": Effect(_few_descriptors("worker")),
    "corrupt store": Effect(_corrupt_store, needs="disk", sleeps=True),
    "clock jump": Effect(_jump),
    "dropped packets": Effect(_drop_packets, needs="network"),
    "slow packets": Effect(_slow_packets, needs="network"),
    "half-open connections": Effect(_half_open, needs="network"),
    "reset connections": Effect(_reset_connections, may_lose=True, needs="network"),
}
