"""The official client for Node: https://github.com/openai/openai-node. Needs `node` and `npm`."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SOURCES = Path(__file__).parent / "node"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with the script and what it needs."""
    folder = shutil.copytree(SOURCES, tmp_path_factory.mktemp("node") / "project")
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund"]
    subprocess.run(command, cwd=folder, check=True, timeout=300)
    return folder


def test_its_documentation(project):
    command = ["node", "openai.mjs"]
    ended = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["chat"] == found["streamed"] == found["helper"] != ""
    for event in (found["parsed"], found["structured"]):
        assert event.keys() == {"name", "date", "participants"}
    assert found["call"]["name"] == "get_weather"
    assert json.loads(found["call"]["arguments"])["location"]
    assert found["retrieved"] == found["response"] != ""
    assert (found["events"][0], found["events"][-1]) == ("response.created", "response.completed")
    assert found["embedding"] == 384
    assert min(found["image"], found["edited"]) > 100
    assert {"smollm2-135m-instruct", "tandem-shapes"} <= set(found["models"])
    assert found["error"] == {"is": True, "status": 404, "code": "model_not_found"}
