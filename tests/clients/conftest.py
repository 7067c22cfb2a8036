"""Clients as their users install them, against the default model: `make clients`.

Their packages are in the extra `clients`, which nothing else needs. Each file has the calls of one client's documentation, with our address and model name,
and a bound on what a small model writes where the call has none.
"""

import pytest
from served import Server

MODEL = "smollm2-135m-instruct"
EMBEDDER = "all-minilm-l6-v2"


def pytest_ignore_collect(config):
    """Only who asks for them has their packages."""
    return None if config.getoption("--clients") else True


@pytest.fixture(scope="session")
def server(tmp_path_factory, smollm2_checkpoint):
    """The default model, an embedding model and an image model."""
    server = Server(
        tmp_path_factory.mktemp("server") / "log",
        *("--model", MODEL, "--model", EMBEDDER, "--model", "tandem-shapes"),
    )
    server.wait_for("/ready")
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="session")
def base_url(server):
    return f"{server.url}/v1"


@pytest.fixture(autouse=True)
def _environment(monkeypatch, base_url):
    """What the documentation has in the environment; and no client calls home."""
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    monkeypatch.setenv("OPENAI_BASE_URL", base_url)
    monkeypatch.setenv("OPENAI_AGENTS_DISABLE_TRACING", "1")
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
