"""Calls of a client whose workers need no model."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import psutil

from engine.contract.generate import GenerateRequest
from engine.contract.operations import GENERATE
from engine.contract.sampling_params import SamplingParams
from engine.errors import CorruptFile

FAKE_WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))


def request(tokens, request_id="r", model="m", n=1):
    return GenerateRequest(
        request_id=request_id, model=model, prompt_token_ids=tokens, sampling=SamplingParams(n=n)
    )


def process_of(client, model):
    """Give the process of a model's worker, if one runs."""
    worker = client._supervisors[model]._worker
    return None if worker is None else worker._process


def pid_of(client, model):
    return process_of(client, model).pid


async def until(condition, timeout_s=60.0):
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  (the state belongs to another task)
            await asyncio.sleep(0.01)


async def restart(client, model="m"):
    """Kill a model's worker and wait until another one serves."""
    before, num_serving = restarts(client), len(client.infos(GENERATE))
    os.kill(pid_of(client, model), signal.SIGKILL)
    await until(lambda: restarts(client) != before and len(client.infos(GENERATE)) == num_serving)


def restarts(client):
    return [status.restarts for status in client.statuses()]


async def collect(stream):
    return [event async for event in stream]


def tokens_of(events):
    return [token for event in events for token in event.token_ids]


async def good_text(path):
    return 7


async def broken_text(path):
    raise CorruptFile("the chat template is damaged")


async def slow_text(path):
    await asyncio.sleep(0.5)
    return 7


def is_alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
