import contextlib
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from loadtest import random_sd
from loadtest.drive import drive
from loadtest.image_client import ImageClient, ImageTarget
from loadtest.image_measure import image_probe
from loadtest.image_peer import DiffusersPainter, PeerServer
from loadtest.image_workload import ImageSettings, StepRange, closed_images
from loadtest.launch import ServerCommand, launched

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x40\x00\x00\x00\x40IEND\xaeB`\x82"
SETTINGS = ImageSettings(64, StepRange(2, 4))


@contextlib.contextmanager
def serving(painter: Callable[[dict[str, Any]], bytes]) -> Iterator[str]:
    server = PeerServer(0, painter)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_pictures_one_at_a_time() -> None:
    at_once, most, bodies = 0, 0, []

    def painter(body: dict[str, Any]) -> bytes:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        bodies.append(body)
        time.sleep(0.01)
        at_once -= 1
        return PNG

    workload = closed_images(SETTINGS, 16, 32, seed=1)
    with serving(painter) as url:
        outcome = await drive(workload, ImageClient(ImageTarget(url, "m")))
    assert [record.error for record in outcome.records] == [None] * 32
    assert most == 1
    assert sorted(body["seed"] for body in bodies) == sorted(r.seed for r in workload.requests)


async def test_what_it_refuses() -> None:
    def painter(body: dict[str, Any]) -> bytes:
        raise ValueError("height must be divisible by 8")

    workload = closed_images(SETTINGS, 1, 1, seed=1)
    with serving(painter) as url:
        refused = await drive(workload, ImageClient(ImageTarget(url, "m")))
        nowhere = await drive(workload, ImageClient(ImageTarget(f"{url}/x", "m")))
    assert refused.records[0].error == "HTTP 400: ValueError: height must be divisible by 8"
    assert "HTTP 404" in str(nowhere.records[0].error)


@pytest.fixture(scope="module", params=["tiny", "tiny-xl"])
def random_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["random_sd", str(folder), "--size", request.param])
        random_sd.main()
    return folder


async def drawn_pictures(url: str) -> None:
    workload = closed_images(SETTINGS, 2, 3, seed=2)
    outcome = await drive(workload, ImageClient(ImageTarget(url, "m")))
    assert [record.error for record in outcome.records] == [None] * 3
    assert all(record.num_bytes and record.num_bytes > 200 for record in outcome.records)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # those of diffusers
async def test_a_random_model_is_drawn(random_model: Path) -> None:
    threads = torch.get_num_threads()
    painter = DiffusersPainter(
        random_model, dtype="float32", channels_last=False, compiled=False, threads=threads
    )
    with serving(painter) as url:
        await drawn_pictures(url)


@pytest.mark.slow
async def test_the_command_draws_it(
    random_model: Path, unused_tcp_port: int, tmp_path: Path
) -> None:
    python = shlex.quote(sys.executable)
    command = ServerCommand(
        "peer",
        f"exec {python} -m loadtest.image_peer {random_model} --port {unused_tcp_port} "
        f"--threads 1 --dtype bfloat16 --channels-last",
        f"http://127.0.0.1:{unused_tcp_port}/v1",
        "m",
    )
    probes = [image_probe(command, SETTINGS)]
    async with launched(command, tmp_path / "log", probes=probes):
        await drawn_pictures(command.url)
