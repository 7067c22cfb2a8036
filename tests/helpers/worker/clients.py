"""Clients of real worker processes without a model."""

import contextlib

from engine.contract.model_spec import ModelSpec
from engine.contract.operations import GENERATE
from engine.contract.settings import EngineConfig
from engine.worker.client import WorkerOptions
from tests.helpers.worker.calls import FAKE_WORKER, good_text, until


@contextlib.asynccontextmanager
async def clients(kind, cache_dir, are_ready=lambda client: True):
    """`start("m=x", num_threads=1)`: a client of that kind whose models serve, and in `client.gone`
    those that left. All are stopped at the end.

    Args:
        are_ready: whether a client's workers are.
    """
    started = []

    async def start(*models, wait=True, check_text=good_text, **config):
        specs = [ModelSpec.parse(model) for model in models]
        options = WorkerOptions(
            config=EngineConfig(**config), cache_dir=cache_dir, command=FAKE_WORKER
        )
        client = kind(specs, options)
        client.check_text = check_text
        client.gone = []
        client.on_gone = lambda model, path: client.gone.append((model, path))
        started.append(client)
        await client.start()
        if wait:
            await until(lambda: are_ready(client))
            await until(lambda: len(client.infos(GENERATE)) == len(specs))
        return client

    yield start
    for client in started:
        await client.stop(0)
