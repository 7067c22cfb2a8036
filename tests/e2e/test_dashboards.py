"""Dashboards and alerts, asked of a real Prometheus that has seen a server at work."""

import contextlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from loadtest.launch import free_port
from tests.helpers.served import Server
from tools.dashboards.files import FOLDER, files

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "docker/alerts.yaml"
INSTALL = "apt-get install --no-install-recommends prometheus"
PROGRAM = shutil.which("prometheus")
SCRAPE_TIME = "500ms"


class Prometheus:
    """A Prometheus that scrapes one server."""

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=f"{url}/api/v1", timeout=20)

    def ask(self, path: str, **params: str) -> Any:
        answer = self.client.get(path, params=params).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def values(self, query: str) -> list[float]:
        """The values of a query's lines that are numbers."""
        lines = self.ask("/query", query=query)["result"]
        return [number for line in lines if (number := float(line["value"][1])) == number]

    def await_scrapes(self, number: int) -> None:
        """Wait for further scrapes that were answered in time."""
        count = "sum(sum_over_time(up[1h]))"
        end = sum(self.values(count)) + number
        deadline_s = time.monotonic() + 60
        while sum(self.values(count)) < end:
            assert time.monotonic() < deadline_s
            time.sleep(0.1)


@pytest.fixture(scope="module")
def prometheus(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """One that has seen texts and images between its scrapes."""
    if PROGRAM is None:
        pytest.skip(f"there is no Prometheus; install it with: {INSTALL}")
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    config = yaml.safe_load((ROOT / "docker/prometheus.yaml").read_text())
    [job] = config["scrape_configs"]
    del job["authorization"]
    job |= {"scrape_interval": SCRAPE_TIME, "scrape_timeout": SCRAPE_TIME}
    job["static_configs"] = [{"targets": [server.url.removeprefix("http://")]}]
    config["rule_files"] = [str(ALERTS)]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    options = {
        "config.file": folder / "config.yaml",
        "storage.tsdb.path": folder / "data",
        "web.listen-address": f"127.0.0.1:{port}",
    }
    with (folder / "log").open("wb") as log:
        command = [PROGRAM, *(f"--{name}={value}" for name, value in options.items())]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    with contextlib.ExitStack() as stack:
        stack.callback(process.wait, 30)
        stack.callback(process.terminate)
        found = Prometheus(f"http://127.0.0.1:{port}")
        stack.callback(found.client.close)
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s:
            with contextlib.suppress(httpx.HTTPError, KeyError, ValueError):
                if found.values("up") == [1]:
                    break
            time.sleep(0.1)
        found.await_scrapes(2)
        work(server)
        found.await_scrapes(3)
        yield found


def work(server: Server) -> None:
    """Have texts written, an image drawn, and a request refused."""
    with httpx.Client(base_url=server.url, timeout=120) as client:
        for _ in range(2):
            body = {"model": "tiny", "prompt": "the quick brown fox " * 20, "max_tokens": 20}
            assert client.post("/v1/completions", json=body).status_code == 200
        drawn = {"model": "tandem-shapes", "prompt": "a red circle", "size": "64x64", "n": 2}
        assert client.post("/v1/images/generations", json=drawn).status_code == 200
        assert client.post("/v1/completions", json={"model": "none"}).status_code in (400, 404)


def test_no_panel_is_empty_but_those_that_say_so(prometheus: Prometheus) -> None:
    empty = []
    for name, text in files().items():
        for panel in json.loads(text)["panels"]:
            for target in panel["targets"]:
                query = target["expr"].replace("$model", ".*").replace("$__rate_interval", "1m")
                if not prometheus.values(query) and "Empty" not in panel["description"]:
                    empty.append((name, panel["title"], query))
    assert empty == []


def test_alerts_are_rules_about_metrics_that_exist_and_are_in_the_runbook(
    prometheus: Prometheus,
) -> None:
    [group] = prometheus.ask("/rules")["groups"]
    page = (ROOT / "docs/OPERATIONS.md").read_text()
    for rule in group["rules"]:
        assert f"| `{rule['name']}` |" in page
        prometheus.ask("/query", query=rule["query"])
        for metric in re.findall(r"\b(?:tandem|process)_\w+", rule["query"]):
            assert prometheus.values(metric), (rule["name"], metric)
    # On a busy machine a scrape may be late, which makes an alert pending.
    states = {
        one["labels"]["alertname"]: one["state"] for one in prometheus.ask("/alerts")["alerts"]
    }
    assert "firing" not in states.values(), states


def test_the_files_are_what_the_panels_say() -> None:
    found = {path.name: path.read_text() for path in FOLDER.iterdir()}
    assert found == files(), "write them: python -m tools.dashboards"
