import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from loadtest.noise import CpuTimes, cpu_shares
from loadtest.processes import MemoryWatch, ProcessStat, process_trees, pss_bytes

CHILD = "x = bytearray(40 << 20); x[:] = b'1' * len(x); print('up', flush=True); input()"
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
input()
child.communicate(b"\\n")
"""


@pytest.fixture
def family() -> Iterator[tuple[int, int]]:
    """A process that leads a session, and its child, which has written 40 MiB."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert parent.stdout is not None
    yield parent.pid, int(parent.stdout.readline())
    parent.communicate(b"\n", timeout=60)


def test_trees_hold_descendants_once(family: tuple[int, int]) -> None:
    parent, child = family
    assert {stat.pid for stat in process_trees([parent])} == {parent, child}
    assert {stat.pid for stat in process_trees([parent, child, parent])} == {parent, child}
    assert {stat.pid for stat in process_trees([child])} == {child}
    assert process_trees([]) == []
    assert os.getpid() in {stat.pid for stat in process_trees([os.getpid()])}
    assert {parent, child} <= {stat.pid for stat in process_trees([os.getpid()])}


def test_memory_of_a_tree(family: tuple[int, int]) -> None:
    parent, child = family
    assert pss_bytes(child) > 40 << 20
    watch = MemoryWatch((parent,))
    watch.measure()
    both = pss_bytes(parent) + pss_bytes(child)
    assert watch.last_bytes == pytest.approx(both, rel=0.1)
    assert watch.last_bytes > 45 << 20
    assert watch.peak_below_bytes == pytest.approx(pss_bytes(child), rel=0.1)


async def test_memory_watch_keeps_the_peak(family: tuple[int, int]) -> None:
    watch = MemoryWatch((family[0],))
    async with watch.watching(interval_s=0.02):
        pass
    assert watch.num_measured >= 1
    watch.peak_bytes = 900 << 20
    watch.measure()
    assert watch.to_json() is not None
    assert watch.to_json()["peak_pss_mib"] == 900.0  # type: ignore[index]
    nothing = MemoryWatch(())
    async with nothing.watching():
        pass
    assert nothing.to_json() is None


async def test_what_cannot_be_watched_is_said_before_the_run(family: tuple[int, int]) -> None:
    for pids in ((999_999_999,), (family[0], 999_999_999)):
        with pytest.raises(ValueError, match="no process 999999999"):
            async with MemoryWatch(pids).watching():
                pytest.fail("the run began")


def test_processes_that_are_gone() -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert ProcessStat.read(done.pid) is None
    assert pss_bytes(done.pid) == 0
    assert process_trees([done.pid]) == []


def test_cpu_times_only_grow() -> None:
    before = CpuTimes.read([os.getppid()])
    sum(i * i for i in range(300_000))
    after = CpuTimes.read([os.getppid()])
    assert after.total_s >= before.total_s > 0
    assert after.own_s > before.own_s
    assert after.idle_s >= before.idle_s


def test_shares_of_the_machine() -> None:
    """10 s on 2 cores: 20 CPU seconds, of which 8 idle and 1 stolen; the server had 9, we 0.5."""
    before = CpuTimes(0, total_s=100, idle_s=50, steal_s=2, watched_s=5, own_s=1)
    after = CpuTimes(10, total_s=120, idle_s=58, steal_s=3, watched_s=14, own_s=1.5)
    shares = cpu_shares(before, after)
    assert shares == {"watched": 0.45, "loadtest": 0.025, "others": 0.075, "steal": 0.05}
    assert set(cpu_shares(before, before).values()) == {0.0}
    # Clock ticks are coarse: the parts may add up to a little more than the whole.
    early = CpuTimes(10, total_s=120, idle_s=60, steal_s=2, watched_s=15.5, own_s=1)
    assert cpu_shares(before, early)["others"] == 0.0
