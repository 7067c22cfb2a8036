"""What `/ready` says of models that cannot serve, and what becomes of a server without any."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.e2e


@pytest.fixture
def spoilt(tiny_llama, tmp_path):
    """`spoilt(name)`: a copy of a tiny model, to be made useless."""
    original = tiny_llama()
    return lambda name: shutil.copytree(original, tmp_path / name)


def test_models_that_cannot_answer_fail_and_the_others_serve(start_server, spoilt):
    good, bad_numbers, bad_template = (spoilt(name) for name in ("good", "numbers", "template"))
    weights = bad_numbers / "model.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {"model.norm.weight": tensors["model.norm.weight"] * float("nan")}, weights)
    (bad_template / "chat_template.jinja").write_text("{{ 1 / 0 }}")
    folders = (good, bad_numbers, bad_template)
    server = start_server(*(word for folder in folders for word in ("--model", str(folder))))
    status, body = server.get("/ready")
    assert (status, body["phase"], body["failed"]) == (200, "ready", ["numbers", "template"])
    assert (
        "not finite" in body["models"][1]["detail"] or "non-finite" in body["models"][1]["detail"]
    )
    assert "repair the checkpoint's chat template" in body["models"][2]["detail"]
    assert server.get("/ready/good")[0] == 200
    assert server.get("/ready/numbers")[0] == 503
    status, body = server.get("/ready/nope")
    assert status == 404
    assert body["error"]["message"].endswith("use one of: good")


def test_without_a_model_that_can_be_loaded_it_ends_and_says_why_once(start_server, spoilt):
    folder = spoilt("my-finetune")
    server = start_server("--model", f"{folder}s", "--offline", wait=False)
    assert server.process.wait(120) == 1
    lines = [line for line in server.log().splitlines() if "my-finetunes" in line]
    told = [json.loads(line) for line in lines if "failed to load" in line]
    assert len(told) == 1, server.log()
    assert told[0]["code"] == "model_source_not_found"
    assert told[0]["hint"] == f"looked for {folder}s; did you mean {folder}?"
    assert "Traceback" not in server.log()
    assert sum("neither a folder or file here" in line for line in lines) == 1, server.log()
