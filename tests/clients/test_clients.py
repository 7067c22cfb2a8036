"""Each client in an environment of its own, where its newest version is whatever others pin.

The files `*_calls.py` are tests that such an environment's pytest runs; which packages it has they
say themselves, as scripts do. They have the calls of one client's documentation, with our address
and model name, and a bound on what a small model writes where the call has none.
"""

import json
import os
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
    run_script(script)


@pytest.mark.parametrize("script", sorted(path.name for path in FOLDER.glob("fleet/*_calls.py")))
def test_a_router_of_a_fleet(fleet, script):
    run_script(f"fleet/{script}")


def run_script(script):
    uv = [sys.executable, "-m", "uv", "run", "--quiet", "--no-project", "--isolated"]
    uv += ["--python", sys.executable, "--with-requirements", script]
    pytest_ = ["python", "-m", "pytest", "-p", "no:cacheprovider", "-W", "ignore"]
    # None of our own configuration, and nothing of this folder to be imported by accident.
    pytest_ += ["-c", "/dev/null", "--noconftest", "--import-mode=importlib", script]
    ended = subprocess.run(
        [*uv, *pytest_], cwd=FOLDER, capture_output=True, text=True, timeout=LONGEST_S
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def output_of(folder, tmp_path, *command, **environment):
    """What a program of Node's prints; needs `node` and `npm`."""
    project = shutil.copytree(FOLDER / folder, tmp_path / "project")
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund"]
    subprocess.run(install, cwd=project, check=True, timeout=LONGEST_S)
    ended = subprocess.run(
        command,
        cwd=project,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_the_ai_sdk(tmp_path):
    """https://ai-sdk.dev: OpenAI-compatible and Anthropic."""
    found = json.loads(output_of("ai_sdk", tmp_path, "node", "calls.mjs"))
    assert found.keys() == {"compatible", "anthropic"}
    for answers in found.values():
        assert answers["text"] == answers["streamed"] != ""
        assert answers["reason"] in ("stop", "length") and 0 < answers["tokens"] <= 32
        assert answers["recipe"].keys() == {"name", "steps"}
        assert answers["call"]["toolName"] == "weather"
        assert answers["result"] == {**answers["call"]["input"], "temperature": 21}
    assert found["compatible"]["text"] == found["anthropic"]["text"]


def test_codex(tmp_path):
    """https://github.com/openai/codex: a turn of its command line, with all the tools it offers."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        f"""
        model = "smollm2-135m-instruct"
        model_provider = "tandem"
        [model_providers.tandem]
        name = "tandem"
        base_url = "{os.environ["OPENAI_BASE_URL"]}"
        wire_api = "responses"
        request_max_retries = 0
        stream_max_retries = 0
        """
    )
    command = [*("npx", "codex", "exec", "--skip-git-repo-check", "--json"), "Say hello."]
    lines = output_of("codex", tmp_path, *command, CODEX_HOME=str(home)).splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    assert events[-1]["type"] == "turn.completed", events
    said = [event["item"] for event in events if event["type"] == "item.completed"]
    assert any(item["type"] == "agent_message" and item["text"] for item in said), events


def test_openais_client_for_node(tmp_path):
    """https://github.com/openai/openai-node"""
    found = json.loads(output_of("node", tmp_path, "node", "openai.mjs"))
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
