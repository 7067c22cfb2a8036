"""Clients of real worker processes without a model."""

import pytest

from engine.contract.model_spec import ModelSpec
from engine.contract.operations import GENERATE
from engine.contract.settings import EngineConfig
from engine.worker.client import ProcessEngineClient, WorkerOptions
from tests.helpers.worker.calls import FAKE_WORKER, good_text, until


@pytest.fixture
async def start(tmp_path):
    """`start("m=x")`: a client whose models serve, and in `client.gone` those that left."""
    clients = []

    async def start(*models, wait=True, check_text=good_text, **config):
        specs = [ModelSpec.parse(model) for model in models]
        options = WorkerOptions(
            config=EngineConfig(**config), cache_dir=tmp_path, command=FAKE_WORKER
        )
        client = ProcessEngineClient(specs, options)
        client.check_text = check_text
        client.gone = []
        client.on_gone = lambda model, path: client.gone.append((model, path))
        clients.append(client)
        await client.start()
        if wait:
            await until(lambda: len(client.infos(GENERATE)) == len(specs))
        return client

    yield start
    for client in clients:
        await client.stop(0)
