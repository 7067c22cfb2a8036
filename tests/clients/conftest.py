"""A server for client libraries as their users install them (`make clients`)."""

import json
import secrets

import pytest

from loadtest.launch import free_port
from tests.helpers.served import Server


def pytest_ignore_collect(config):
    """Ignore the clients' tests unless asked for: they need the extra `clients`, and package
    registries."""
    return None if config.getoption("--clients") else True


@pytest.fixture(scope="session")
def server(tmp_path_factory, smollm2_checkpoint):
    """A server of the default model, an embedding model and an image model."""
    models = ("smollm2-135m-instruct", "all-minilm-l6-v2", "tandem-shapes")
    options = [option for model in models for option in ("--model", model)]
    folder = tmp_path_factory.mktemp("server")
    config = json.dumps({"torch_profiler_dir": str(folder / "profiles")})
    options += ["--enable-runtime-loading", "--profiler-config", config]
    server = Server(folder / "log", *options)
    server.wait_for("/ready")
    yield server
    assert server.stop() == 0


@pytest.fixture
def fleet(tmp_path, smollm2_checkpoint, monkeypatch):
    """Two servers of the default text model, which publish what their caches hold and compute
    prompts for each other; set the environment that says where."""
    key = tmp_path / "key"
    key.write_text(secrets.token_hex(32))
    servers, ports = [], []
    for number in range(2):
        ports.append([free_port(), free_port()])
        events, replay = (f"tcp://*:{port}" for port in ports[-1])
        config = {
            "enable_kv_cache_events": True,
            "endpoint": events,
            "replay_endpoint": replay,
            "topic": "kv-events",
        }
        options = ("--model", "smollm2-135m-instruct", "--kv-cache-memory-gib", "1")
        options += ("--kv-events-config", json.dumps(config), "--enable-runtime-loading")
        options += ("--kv-transfer", "127.0.0.1", "--kv-transfer-key", str(key))
        options += ("--kv-lease-duration", "5")
        servers.append(Server(tmp_path / f"log-{number}", *options))
    for server in servers:
        server.wait_for("/ready")
    monkeypatch.setenv("SERVER_URLS", " ".join(server.url for server in servers))
    monkeypatch.setenv("EVENT_PORTS", json.dumps(ports))
    yield servers
    assert [server.stop() for server in servers] == [0, 0]


@pytest.fixture
def environment(server, monkeypatch):
    """Set the environment that the clients' documentation asks for, and keep clients from calling
    home."""
    monkeypatch.setenv("SERVER_URL", server.url)
    monkeypatch.setenv("SERVER_PROFILES", str(server.log_path.with_name("profiles")))
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    monkeypatch.setenv("OPENAI_AGENTS_DISABLE_TRACING", "1")
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
