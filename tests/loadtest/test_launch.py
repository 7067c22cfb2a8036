import asyncio
from pathlib import Path

import pytest

from loadtest.launch import launched, version_of
from loadtest.processes import ProcessStat, process_trees
from tests.helpers.loadtest.comparisons import WORDS, server_at


async def test_a_server_and_its_children_are_stopped(unused_tcp_port: int, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "words.log"
    command = server_at(unused_tcp_port, f"exec {WORDS} {unused_tcp_port} --child --load 0.4")
    async with launched(command, log) as launch:
        child = int(log.read_text().split()[1])
        assert {stat.pid for stat in process_trees([launch.pid])} == {launch.pid, child}
        assert 0 < launch.first_answer_s < launch.ready_s
        assert launch.ready_s >= 0.4
        assert launch.stop_s is None
    assert launch.stop_s is not None
    for pid in (launch.pid, child):
        stat = ProcessStat.read(pid)
        assert stat is None or stat.is_zombie


async def test_what_a_shell_started_is_stopped_too(unused_tcp_port: int, tmp_path: Path) -> None:
    command = server_at(unused_tcp_port, f"{WORDS} {unused_tcp_port}; true")
    async with launched(command, tmp_path / "log") as launch:
        members = {stat.pid for stat in process_trees([launch.pid])}
        assert len(members) == 2
    assert not any(
        stat for pid in members if (stat := ProcessStat.read(pid)) and not stat.is_zombie
    )


async def test_cancelling_stops_the_server(unused_tcp_port: int, tmp_path: Path) -> None:
    pid: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def use() -> None:
        command = server_at(unused_tcp_port, f"exec {WORDS} {unused_tcp_port}")
        async with launched(command, tmp_path / "log") as launch:
            pid.set_result(launch.pid)
            await asyncio.sleep(60)

    task = asyncio.create_task(use())
    await pid
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ProcessStat.read(pid.result()) is None


async def test_a_server_that_ends_shows_its_last_words(
    unused_tcp_port: int, tmp_path: Path
) -> None:
    command = server_at(unused_tcp_port, "echo $WORD >&2; exit 3", variables={"WORD": "no weights"})
    with pytest.raises(RuntimeError, match=r"words ended with status 3:\nno weights"):
        async with launched(command, tmp_path / "log"):
            pass


async def test_a_server_that_never_serves(unused_tcp_port: int, tmp_path: Path) -> None:
    command = server_at(unused_tcp_port, "exec sleep 60")
    with pytest.raises(RuntimeError, match=r"did not serve within 0\.3 s"):
        async with launched(command, tmp_path / "log", timeout_s=0.3):
            pass


async def test_a_taken_port_is_not_measured(unused_tcp_port: int, tmp_path: Path) -> None:
    command = server_at(unused_tcp_port, f"exec {WORDS} {unused_tcp_port}")
    async with launched(command, tmp_path / "log"):
        with pytest.raises(RuntimeError, match="already listens"):
            async with launched(command, tmp_path / "other"):
                pass


async def test_versions(unused_tcp_port: int) -> None:
    assert await version_of(server_at(1, "true", version_command="echo one; echo two")) == "one"
    assert await version_of(server_at(1, "true")) is None
    with pytest.raises(RuntimeError, match="the version command of words failed"):
        await version_of(server_at(1, "true", version_command="exit 1"))
