"""Draws the questions' pictures through a server of each setting's own, and keeps them."""

import asyncio
import shlex
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from loadtest.image_measure import image_probe
from loadtest.image_workload import ImageSettings, StepRange
from loadtest.launch import ServerCommand, free_port, launched
from tools.demo_image_model.questions import Question
from tools.image_settings.settings import MODEL, Setting
from tools.strip import decoded

SIZE = 64
_AT_ONCE = 16
_PROBE = ImageSettings(SIZE, StepRange(1, 1))


async def draw_all(
    settings: Sequence[Setting], questions: Sequence[Question], folder: Path
) -> None:
    """Draw the pictures that `folder` lacks, so that a run that was stopped goes on."""
    for options, group in groupby(settings, lambda one: one.options):
        missing = [
            (setting, question)
            for setting in group
            for question in questions
            if not picture_path(folder, setting, question).exists()
        ]
        if not missing:
            continue
        print(f"{' '.join(options) or 'default options'}: {len(missing)} pictures", flush=True)
        url = f"http://127.0.0.1:{free_port()}"
        words = ("--model", MODEL, "--port", url.rpartition(":")[2], *options)
        command = shlex.join(["exec", sys.executable, "-m", "server", "serve", *words])
        server = ServerCommand("server", command, f"{url}/v1", MODEL)
        async with (
            launched(server, server.log_path(folder), probes=[image_probe(server, _PROBE)]),
            httpx.AsyncClient(base_url=url, timeout=600, trust_env=False) as client,
        ):
            places = asyncio.Semaphore(_AT_ONCE)
            async with asyncio.TaskGroup() as tasks:
                for setting, question in missing:
                    path = picture_path(folder, setting, question)
                    tasks.create_task(_draw(client, places, setting, question, path))


async def _draw(
    client: httpx.AsyncClient,
    places: asyncio.Semaphore,
    setting: Setting,
    question: Question,
    path: Path,
) -> None:
    body = {"model": MODEL, "prompt": question.prompt, "seed": question.seed}
    body |= {"size": f"{SIZE}x{SIZE}", "response_format": "b64_json", **setting.fields}
    async with places:
        answer = await client.post("/v1/images/generations", json=body)
    if not answer.is_success:
        raise RuntimeError(f"{setting.name}: {answer.text}")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    decoded(answer.json()["data"][0]["b64_json"]).save(part, "PNG")
    part.rename(path)


def pictures(setting: Setting, questions: Sequence[Question], folder: Path) -> np.ndarray:
    """The pictures of all questions, `[N, height, width, 3]` uint8."""
    paths = [picture_path(folder, setting, question) for question in questions]
    return np.stack([np.asarray(Image.open(path)) for path in paths])


def picture_path(folder: Path, setting: Setting, question: Question) -> Path:
    name = setting.name.replace(", ", "-").replace(" ", "-")
    return folder / name / f"{question.seed}.png"
