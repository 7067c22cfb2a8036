"""Probes, version and metrics over HTTP."""

import pytest

from engine.contract.operations import GENERATE
from engine.contract.status import Phase
from engine.errors import Failure
from engine.version import __version__
from server.app import create_app
from server.settings import Settings
from tests.helpers.server.fake_engine import FakeEngine
from tests.helpers.server.fake_server import answer_of, client_of


@pytest.fixture
def engine():
    return FakeEngine("a", "b")


@pytest.fixture
def app(engine):
    return create_app(Settings(), engine)


@pytest.fixture
async def client(app):
    return client_of(app)


async def test_health_is_live_whatever_the_models_do(client, engine, app):
    for phase in Phase:
        engine.set_status("a", phase)
        assert (await client.get("/health")).status_code == 200
    app.state.tandem.lifecycle.begin_drain()
    assert (await client.get("/health")).status_code == 200
    assert (await client.head("/health")).status_code == 200
    assert (await client.get("/v1/health")).json() == {"status": "ok"}


async def test_the_address_itself_answers(client):
    assert "/docs" in (await client.get("/")).text
    answer = await client.head("/")
    assert (answer.status_code, answer.content) == (200, b"")
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    opened = await client.get("/", headers=browser)
    assert "playground/main.js" in opened.text


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
async def test_ping_is_health_without_a_body_or_a_key(engine, method):
    client = client_of(create_app(Settings(api_keys=("zebra",)), engine))
    response = await client.request(method, "/ping")
    assert (response.status_code, response.content) == (200, b"")
    assert (await client.get("/load")).status_code == 401


async def test_load_counts_requests_and_not_their_places(client, app):
    admission = app.state.tandem.admission
    assert (await client.get("/load")).json() == {"server_load": 0}
    leases = [admission.admit(GENERATE, "a", 3), admission.admit(GENERATE, "b")]
    assert (await client.get("/load")).json() == {"server_load": 2}
    for lease in leases:
        lease.release()
        lease.release()
    assert (await client.get("/load")).json() == {"server_load": 0}


async def test_ready_while_everything_serves(client):
    response = await client.get("/ready")
    assert response.status_code == 200
    body = response.json()
    assert body["phase"] == "ready"
    assert [model["model"] for model in body["models"]] == ["a", "b"]
    assert response.headers["cache-control"] == "no-store"
    assert (await client.head("/ready")).status_code == 200


async def test_ready_tells_phase_and_progress_while_loading(client, engine):
    engine.set_status("b", Phase.DOWNLOADING, progress=0.25, detail="12 of 48 MiB")
    response = await client.get("/ready")
    assert response.status_code == 503
    body = response.json()
    assert (body["phase"], body["progress"]) == ("downloading", 0.25)
    assert body["models"][1] == {
        "model": "b",
        "phase": "downloading",
        "progress": 0.25,
        "detail": "12 of 48 MiB",
        "error_code": None,
        "restarts": 0,
    }
    assert (await client.head("/ready")).status_code == 503


async def test_a_model_that_failed_is_named_and_does_not_hold_up_the_others(client, engine):
    failure = Failure("model_source_not_found", "there is no such model")
    engine.set_status("a", Phase.FAILED, failure=failure)
    answer = answer_of(await client.get("/ready"))
    assert (answer["phase"], answer["failed"]) == ("ready", ["a"])
    assert answer["models"][0]["error_code"] == "model_source_not_found"
    engine.set_status("b", Phase.LOADING)
    response = await client.get("/ready")
    assert (response.status_code, response.json()["phase"]) == (503, "loading")
    engine.set_status("b", Phase.FAILED)
    response = await client.get("/ready")
    assert (response.status_code, response.json()["phase"]) == (503, "failed")
    assert response.json()["failed"] == ["a", "b"]


async def test_all_models_may_be_required(engine):
    engine.set_status("a", Phase.FAILED)
    client = client_of(create_app(Settings(require_all=True), engine))
    response = await client.get("/ready")
    assert (response.status_code, response.json()["phase"]) == (503, "failed")


async def test_paths_are_for_the_operator_only(client, engine):
    failure = Failure("model_source_not_found", "not there", hint="looked for /home/me/secret")
    engine.set_status("a", Phase.FAILED, failure=failure)
    for path in ("/ready", "/ready/a", "/v1/models/a", "/models"):
        assert "secret" not in (await client.get(path)).text


@pytest.mark.parametrize("keys", [(), ("zebra",)])
async def test_one_model(keys):
    engine = FakeEngine("org/name", "b")
    app = create_app(Settings(api_keys=keys), engine)
    client = client_of(app)
    response = await client.get("/ready/org/name")
    assert response.status_code == 200
    assert response.json()["model"] == "org/name"
    assert response.headers["cache-control"] == "no-store"
    assert (await client.head("/ready/org/name")).status_code == 200
    engine.set_status("b", Phase.LOADING, progress=0.5)
    response = await client.get("/ready/b")
    assert (response.status_code, response.json()["progress"]) == (503, 0.5)
    engine.set_status("b", Phase.FAILED, failure=Failure("corrupt_file", "it is cut off"))
    response = await client.get("/ready/b")
    assert response.status_code == 503
    assert (response.json()["phase"], response.json()["detail"]) == ("failed", "it is cut off")
    response = await client.get("/ready/nope")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert "use one of: org/name" in response.json()["error"]["message"]
    app.state.tandem.lifecycle.begin_drain()
    response = await client.get("/ready/org/name")
    assert (response.status_code, response.json()["phase"]) == (503, "draining")


async def test_ready_while_a_worker_restarts(client, engine):
    engine.die("a")
    response = await client.get("/ready")
    assert (response.status_code, response.json()["phase"]) == (503, "restarting")
    assert response.json()["models"][0]["restarts"] == 1
    engine.revive()
    assert (await client.get("/ready")).status_code == 200


async def test_version(client):
    assert (await client.get("/version")).json() == {"version": __version__}


async def test_metrics_in_the_format_that_was_asked_for(client):
    response = await client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    assert 'tandem_num_requests_running{model_name="a"} 0.0' in response.text
    response = await client.get("/metrics", headers={"Accept": "application/openmetrics-text"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


async def test_metrics_count_requests_by_route_not_by_path(client):
    await client.get("/v1/models/a")
    await client.get("/v1/models/nope")
    await client.get("/made/up/by/the/client")
    text = (await client.get("/metrics")).text
    assert "made" not in text
    assert 'route="unmatched",status="404"' in text
    assert 'nope"' not in text
