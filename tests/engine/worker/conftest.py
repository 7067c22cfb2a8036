"""Clients of real worker processes without a model."""

import pytest

from engine.worker.client import ProcessEngineClient
from tests.helpers.worker.clients import clients


@pytest.fixture
async def start(tmp_path):
    """`start("m=x")`: a client whose models serve, and in `client.gone` those that left."""
    async with clients(ProcessEngineClient, tmp_path) as start:
        yield start
