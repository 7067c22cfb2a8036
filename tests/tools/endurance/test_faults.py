"""Faults are drawn by a seed, and files are damaged as it says."""

import itertools
import random
import subprocess
import sys
import time
from collections import Counter

import pytest

from tools.endurance.asking import Answer
from tools.endurance.chaos import clock_library, is_explained
from tools.endurance.disk import can_mount, mounted
from tools.endurance.faults import EFFECTS, NUM_FAULTS, Ground, damage, draw_faults, move_clock
from tools.endurance.patience import PatientClock


def test_a_seed_repeats_its_faults():
    seed = random.randrange(2**31)
    assert draw_faults(seed) == draw_faults(seed)
    assert draw_faults(seed) != draw_faults(seed + 1)


def test_fifty_seeds_make_every_fault():
    counts = Counter(fault.name for seed in range(1, 51) for fault in draw_faults(seed))
    assert set(counts) == set(EFFECTS)
    assert sum(counts.values()) == 50 * NUM_FAULTS


@pytest.mark.parametrize(
    ("fault", "answer", "is_right"),
    [
        ("kill a worker", Answer(503, 1, code="engine_dead"), True),
        ("kill a worker", Answer(500, 1, code="internal_error"), False),
        ("kill a worker", Answer(500, 1, problem="HTTP 500, malformed"), False),
        ("kill a worker", Answer(None, 90, problem="no end in 90 s"), False),
        ("kill a worker", Answer(None, 1, problem="connection lost", is_lost=True), False),
        ("kill the server", Answer(None, 1, problem="connection lost", is_lost=True), True),
        ("dropped packets", Answer(None, 1, problem="connection lost", is_lost=True), False),
        ("reset connections", Answer(None, 1, problem="connection lost", is_lost=True), True),
        ("reset connections", Answer(503, 1, code="engine_dead"), False),
        ("full disk", Answer(503, 1, code="engine_dead"), False),
        ("stop a worker briefly", Answer(200, 1, bits="other"), False),
    ],
)
def test_a_fault_explains_its_own_errors_and_no_others(fault, answer, is_right):
    assert is_explained(answer, EFFECTS[fault]) == is_right


def test_a_fault_is_left_out_only_where_its_part_is_missing(tmp_path):
    server, disk = object(), object()
    ground = Ground(server, disk, None, tmp_path)
    lacking = {name for name, effect in EFFECTS.items() if ground.lacks(effect.needs)}
    packets = {"dropped packets", "slow packets", "half-open connections", "reset connections"}
    assert lacking == packets


def test_damage_changes_a_file_and_repeats(tmp_path):
    seed, contents = random.randrange(2**31), random.randbytes(300)
    results = []
    for name in ("one", "other"):
        rng = random.Random(seed)
        for number in range(20):
            path = tmp_path / f"{name}-{number}"
            path.write_bytes(contents)
            damage(path, rng)
            results.append(path.read_bytes())
    assert results[:20] == results[20:]
    assert all(result != contents for result in results)
    assert len({len(result) for result in results}) > 1, "some are cut off"


@pytest.mark.skipif(not can_mount(), reason="this system lets us mount no disk")
async def test_a_disk_is_full_and_read_only_until_it_is_not(tmp_path):
    numbers = itertools.count()
    async with mounted(tmp_path / "disk") as disk:

        def can_write():
            command = [*disk.prefix.split(), "sh", "-c", f"echo a > {disk.path}/{next(numbers)}"]
            done = subprocess.run(command, capture_output=True, text=True)
            return done.stderr.strip().rpartition(": ")[2] or "yes"

        assert can_write() == "yes"
        disk.fill()
        assert can_write() != "yes"
        disk.free()
        assert can_write() == "yes"
        disk.make_read_only()
        assert can_write() == "Read-only file system"
        disk.make_writable()
        assert can_write() == "yes"
        assert not list(disk.path.iterdir()), "nobody else sees it"
    assert not disk.path.exists()


def test_only_the_wall_clock_of_the_server_jumps(tmp_path):
    clock = tmp_path / "clock"
    move_clock(clock, 0)
    program = (
        "import time, datetime\n"
        "for line in iter(input, 'end'):\n"
        "    print(time.time(), datetime.datetime.now().timestamp(), time.monotonic(), flush=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-IS", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"LD_PRELOAD": str(clock_library(tmp_path)), "MOVED_CLOCK": str(clock)},
    )

    def clocks():
        process.stdin.write("\n")
        process.stdin.flush()
        wall, date, monotonic = map(float, process.stdout.readline().split())
        return (
            round(wall - time.time()),
            round(date - time.time()),
            round(monotonic - time.monotonic()),
        )

    seconds = random.choice([-86_400, 3_600])
    assert clocks() == (0, 0, 0)
    move_clock(clock, seconds)
    assert clocks() == (seconds, seconds, 0)
    move_clock(clock, 0)
    assert clocks() == (0, 0, 0)
    process.communicate("end\n")
    assert process.returncode == 0


async def test_a_patient_clock_does_not_count_the_time_of_a_pause():
    clock = PatientClock()
    await clock.sleep(0.02)
    assert 0.01 < clock.seconds < 0.5
    clock._count(time.monotonic() - 500, 0.5)
    assert clock.seconds < 2.5
