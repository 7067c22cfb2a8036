"""Clients whose models have several real worker processes without a model."""

import pytest

from engine.worker.replicas.client import ReplicatedEngineClient
from tests.helpers.worker.clients import clients


@pytest.fixture
async def start(tmp_path):
    """`start("m=x", replicas=3)`: a client whose models serve with all their workers, and in
    `client.gone` those that left."""
    async with clients(ReplicatedEngineClient, tmp_path, all_ready) as start:
        yield start


def all_ready(client):
    """Every worker serves, and the models know it: until then they say that they are loading."""
    return all(one.is_whole for one in client._sets.values()) and all(
        client._workers.is_ready(name) for one in client._sets.values() for name in one.workers
    )
