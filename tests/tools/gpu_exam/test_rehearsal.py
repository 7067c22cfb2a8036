"""The exam of a GPU, rehearsed without one: every stage, without the packages of the server."""

import json
import os
import subprocess
import sys
import zipfile

import pytest

from kernels import _triton
from tools.gpu_exam.stages import STAGES

pytestmark = [
    pytest.mark.skipif(not _triton.AVAILABLE, reason="Triton is not installed"),
    pytest.mark.slow,
]

MISSING = (
    *("accelerate", "diffusers", "fastapi", "gguf", "llguidance", "msgspec", "onnxruntime"),
    *("PIL", "pydantic", "pydantic_settings", "pytest", "starlette", "structlog", "uvicorn", "zmq"),
)


def rehearse(out, *arguments, without=()):
    """Run the program with some packages out of reach."""
    (out / "sitecustomize.py").write_text(
        f"import sys\nsys.modules.update(dict.fromkeys({without!r}))\n"
    )
    return subprocess.run(
        [sys.executable, "-m", "tools.gpu_exam", "--out", out, "--rehearse", *arguments],
        env=os.environ | {"PYTHONPATH": str(out)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_stage_passes_with_little_more_than_torch(tmp_path):
    done = rehearse(tmp_path, without=MISSING)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in STAGES:
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert found["finished"] and found["cases"], done.stderr
        assert set(found["missing"]) == {"structlog", "llguidance", "msgspec", "gguf"}
        assert all(facts["ok"] for facts in found["cases"].values())
    assert json.loads((tmp_path / "broken.json").read_text()) == []


def test_images_are_drawn_where_diffusers_is_installed(tmp_path):
    done = rehearse(tmp_path, "--stage", "images")
    assert done.returncode == 0, done.stdout + done.stderr
    (facts,) = json.loads((tmp_path / "images.json").read_text())["cases"].values()
    assert facts["differences"] == [0.0, 0.0]


def test_a_run_goes_on_after_a_process_that_died(tmp_path):
    """A case that ended its process has failed, with its inputs; the others are run."""
    died = {"rms_norm smollm2_decode bfloat16": {"ok": False, "error": "died", "seed": 1}}
    (tmp_path / "targets.0.json").write_text(json.dumps({"cases": died}))
    with zipfile.ZipFile(tmp_path / "targets.0.zip", "w") as file:
        file.writestr("rms_norm smollm2_decode bfloat16.pt", b"inputs")
    done = rehearse(tmp_path, "--stage", "targets")
    assert done.returncode == 1
    (broken,) = json.loads((tmp_path / "broken.json").read_text())
    assert (broken["stage"], broken["error"], broken["seed"]) == ("targets", "died", 1)
    assert zipfile.ZipFile(tmp_path / "inputs.zip").namelist() == [broken["inputs"]]
    again = rehearse(tmp_path, "--stage", "targets")
    assert again.returncode == 1 and "finished before" in again.stdout
