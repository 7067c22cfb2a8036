"""Servers for the tests that ask one over HTTP."""

import contextlib
import itertools

import openai
import pytest

from tests.helpers.served import Server

MODEL = "smollm2-135m-instruct"
IMAGE_MODEL = "tandem-shapes"


@pytest.fixture(scope="session")
def model_cache(smollm2_checkpoint) -> None:
    """Put the default model into the cache before a server is timed."""


@pytest.fixture
def start_server(tmp_path, model_cache):
    """`start_server(*args)` starts a server that ends with the test; on a free port, unless given
    one."""
    logs = (tmp_path / f"server-{number}.log" for number in itertools.count())
    with contextlib.ExitStack() as stack:

        def start(*args: str, wait: bool = True, port: int | None = None) -> Server:
            server = Server(next(logs), *args, port=port)
            stack.callback(server.stop)
            if wait:
                server.wait_for("/ready")
            return server

        yield start


@pytest.fixture(scope="module")
def start_shared_server(tmp_path_factory, model_cache):
    """`start_shared_server(*args)` starts a server for the tests of one file."""
    servers: list[Server] = []

    def start(*args: str) -> Server:
        log = tmp_path_factory.mktemp("server") / "server.log"
        servers.append(Server(log, *args))
        servers[-1].wait_for("/ready")
        return servers[-1]

    yield start
    for server in servers:
        assert server.stop() == 0, server.log()
        assert server.new_stalls() == []


@pytest.fixture(scope="session")
def server(tmp_path_factory, model_cache, tiny_llama):
    """The server of all tests that need none of their own: the default models, and a tiny random
    one under the name `tiny`."""
    log = tmp_path_factory.mktemp("server") / "server.log"
    models = (MODEL, f"tiny={tiny_llama()}", IMAGE_MODEL)
    options = [option for model in models for option in ("--model", model)]
    server = Server(log, *options, "--max-image-megapixel-steps", "40")
    server.wait_for("/ready")
    yield server
    assert server.stop() == 0, server.log()
    assert server.new_stalls() == []


@pytest.fixture
def client(server):
    """OpenAI's client of the module's server."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client
