"""Clients whose models have several real worker processes without a model."""

import pytest

from engine.contract.model_spec import ModelSpec
from engine.contract.operations import GENERATE
from engine.contract.settings import EngineConfig
from engine.worker.client import WorkerOptions
from engine.worker.replicas.client import ReplicatedEngineClient
from tests.helpers.worker.calls import FAKE_WORKER, good_text, until


@pytest.fixture
async def start(tmp_path):
    """`start("m=x", replicas=3)`: a client whose models serve with all their workers, and in
    `client.gone` those that left."""
    clients = []

    async def start(*models, wait=True, **config):
        specs = [ModelSpec.parse(model) for model in models]
        options = WorkerOptions(
            config=EngineConfig(**config), cache_dir=tmp_path, command=FAKE_WORKER
        )
        client = ReplicatedEngineClient(specs, options)
        client.check_text = good_text
        client.gone = []
        client.on_gone = lambda model, path: client.gone.append((model, path))
        clients.append(client)
        await client.start()
        if wait:
            await until(lambda: num_ready(client) == sum(s.config.replicas for s in sets(client)))
            await until(lambda: len(client.infos(GENERATE)) == len(specs))
        return client

    yield start
    for client in clients:
        await client.stop(0)


def sets(client):
    return client._sets.values()


def num_ready(client):
    return sum(client._workers.is_ready(name) for one in sets(client) for name in one.workers)
