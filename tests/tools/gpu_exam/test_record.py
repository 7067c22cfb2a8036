"""The record of a stage: what is kept, and when it ends."""

import io
import json
import time
import zipfile

import pytest
import torch

from tools.gpu_exam.record import RUNNING, OutOfTime, Poisoned, Record


@pytest.fixture
def path(tmp_path):
    return tmp_path / "stage.0.json"


def record_of(path, done=(), seconds=60.0):
    return Record(path, set(done), time.monotonic() + seconds)


def cases(path):
    return json.loads(path.read_text())["cases"]


def fail(error):
    raise error


def test_a_failing_case_is_kept_and_the_next_one_runs(path):
    record = record_of(path)
    record.run("bad", lambda: fail(ValueError("no")), seed=7)
    record.keep("bad", {"x": torch.arange(3)})
    assert record.run("good", lambda: {"found": 5})["found"] == 5
    bad, good = cases(path).values()
    assert good["ok"] and not bad["ok"]
    assert (bad["error"], bad["seed"]) == ("ValueError: no", 7)
    content = zipfile.ZipFile(path.with_suffix(".zip")).read("bad.pt")
    assert torch.load(io.BytesIO(content))["x"].tolist() == [0, 1, 2]


def test_a_case_is_run_once(path):
    record_of(path).run("one", lambda: None)
    for record in (record_of(path), record_of(path.with_name("stage.1.json"), done={"one"})):
        record.run("one", lambda: fail(AssertionError("run again")))
        assert record.cases.get("one", {"ok": True})["ok"]


def test_a_case_that_ends_the_process_has_failed(path):
    with pytest.raises(KeyboardInterrupt):
        record_of(path).run("last", lambda: fail(KeyboardInterrupt()))
    assert cases(path)["last"]["error"] == RUNNING


def test_nothing_begins_when_the_time_is_up(path):
    with pytest.raises(OutOfTime):
        record_of(path, seconds=-1).run("late", lambda: None)


@pytest.mark.parametrize(
    ("message", "is_poisoned"),
    [
        ("CUDA error: an illegal memory access was encountered", True),
        ("Triton Error [CUDA]: misaligned address", True),
        ("CUDA error: out of memory", False),
        ("shapes differ", False),
    ],
)
def test_a_broken_device_ends_the_process(path, message, is_poisoned):
    record = record_of(path)
    if is_poisoned:
        with pytest.raises(Poisoned):
            record.run("bad", lambda: fail(RuntimeError(message)))
    else:
        record.run("bad", lambda: fail(RuntimeError(message)))
    assert message in cases(path)["bad"]["error"]
