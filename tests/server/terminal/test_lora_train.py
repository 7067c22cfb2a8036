"""`tandem lora-train`: what is ordered, and what is printed."""

import json

import pytest
from typer.testing import CliRunner

from server.cli import app

ESTIMATE = dict.fromkeys(("weights", "adapter", "gradients", "optimizer", "activations"), 1 << 30)
ESTIMATE |= {"total": 5 << 30, "num_trained": 1234}
REPORT = {
    "steps": 7,
    "seconds": 3.2,
    "first_loss": 2.0,
    "last_loss": 0.5,
    "adapter": "o/adapter",
    "estimate": ESTIMATE,
}
GIVEN = ("--task", "text", "--model", "smollm2", "--data", "d", "--output", "o")


@pytest.fixture(autouse=True)
def trains_on_the_cpu(child):
    yield
    assert set(child["devices"]) <= {"cpu"}
    assert all(" TrainingOrder " in command for command in child["commands"])


def invoke(*arguments):
    return CliRunner().invoke(app, ["lora-train", *arguments])


def test_an_order_and_its_report(child):
    child["lines"] = [
        {"progress": 0.5, "detail": "fetching"},
        {"estimate": ESTIMATE},
        {"warning": "3 texts are cut"},
        {"step": 1, "of": 7, "loss": 2.0, "rate": 0.1, "left_s": 3.0},
        {"report": REPORT},
    ]
    done = invoke(*GIVEN, "--rank", "16", "--target", "q_proj", "--target", "v_proj", "--resume")
    assert done.exit_code == 0
    assert "loss 2.0000 → 0.5000" in done.stdout
    assert "tandem serve --model smollm2 --lora NAME=o/adapter" in done.stdout
    assert "3 texts are cut" in done.stderr
    (order,) = child["orders"]
    assert (order["rank"], order["alpha"], order["resume"]) == (16, 16, True)
    assert order["targets"] == ["q_proj", "v_proj"]
    assert order["estimate"] is None


def test_an_estimate_alone(child):
    child["lines"] = [{"report": {"estimate": ESTIMATE}}]
    done = invoke("--task", "image", "--estimate", "sdxl")
    assert done.exit_code == 0
    assert "1,234" in done.stdout
    assert "5.00 GiB" in done.stdout
    as_json = invoke("--task", "image", "--estimate", "sdxl", "--json")
    assert json.loads(as_json.stdout) == {"estimate": ESTIMATE}


def test_a_problem_is_one_line(child):
    child["lines"] = [{"problem": "rank is 0; it must be 1 to 256"}]
    done = invoke(*GIVEN)
    assert done.exit_code == 2
    assert done.stderr == "tandem: rank is 0; it must be 1 to 256\n"


def test_a_process_that_dies_says_so(child):
    child["code"] = 9
    done = invoke(*GIVEN)
    assert done.exit_code == 2
    assert "exit code 9" in done.stderr


def test_what_must_be_given(child):
    done = invoke("--task", "text", "--model", "m")
    assert done.exit_code == 2
    assert "--data" in done.stderr
    assert not child["orders"]
