"""Each client in an environment of its own, where its newest version is whatever others pin.

The files `*_calls.py` are tests that such an environment's pytest runs; which packages it has they
say themselves, as scripts do. They have the calls of one client's documentation, with our address
and model name, and a bound on what a small model writes where the call has none.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("environment")]
FOLDER = Path(__file__).parent
LONGEST_S = 600


@pytest.mark.parametrize("script", sorted(path.name for path in FOLDER.glob("*_calls.py")))
def test_a_python_client(script):
    uv = [sys.executable, "-m", "uv", "run", "--quiet", "--no-project", "--isolated"]
    uv += ["--python", sys.executable, "--with-requirements", script]
    pytest_ = ["python", "-m", "pytest", "-p", "no:cacheprovider", "-W", "ignore"]
    # None of our own configuration, and nothing of this folder to be imported by accident.
    pytest_ += ["-c", "/dev/null", "--noconftest", "--import-mode=importlib", script]
    ended = subprocess.run(
        [*uv, *pytest_], cwd=FOLDER, capture_output=True, text=True, timeout=LONGEST_S
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_openais_client_for_node(tmp_path):
    """https://github.com/openai/openai-node; needs `node` and `npm`."""
    project = shutil.copytree(FOLDER / "node", tmp_path / "project")
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund"]
    subprocess.run(install, cwd=project, check=True, timeout=LONGEST_S)
    ended = subprocess.run(
        ["node", "openai.mjs"], cwd=project, capture_output=True, text=True, timeout=LONGEST_S
    )
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
