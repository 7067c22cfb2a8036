"""Traces of steps, as the operator's tools order them."""

import gzip
import json
import random

import pytest
import torch
from structlog.testing import capture_logs

from engine.contract.profiler_config import ProfilerConfig
from engine.errors import InvalidParameter, ModelLoadError
from engine.worker.profiling import StepProfiler


def make(tmp_path, **fields):
    given = {"profiler": "torch", "torch_profiler_dir": str(tmp_path / "traces"), **fields}
    return StepProfiler(ProfilerConfig.read(given), "org/tiny#2")


def step(profiler, size):
    made = profiler.run(lambda: torch.ones(size, size) @ torch.ones(size, size))
    assert made.shape == (size, size)
    profiler.note_step()


def sizes_in(path):
    """The sizes of the products in a trace."""
    data = path.read_bytes()
    events = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)["traceEvents"]
    products = [one for one in events if one.get("name") == "aten::mm"]
    steps = [one for one in events if one.get("cat") == "user_annotation"]
    assert [one["name"] for one in steps] == ["step"] * len(products)
    return [one["args"]["Input Dims"][0][0] for one in products]


@pytest.mark.parametrize("zips", [True, False])
def test_steps_between_the_orders_are_in_the_trace(tmp_path, zips):
    profiler = make(tmp_path, torch_profiler_record_shapes=True, torch_profiler_use_gzip=zips)
    sizes = random.sample(range(2, 60), 8)
    profiler.switch(on=False)
    for turn in range(2):
        step(profiler, sizes[0])
        profiler.switch(on=True)
        for size in sizes[1 : 4 + turn]:
            step(profiler, size)
            profiler.switch(on=True)
        profiler.switch(on=False)
        profiler.switch(on=False)
    first, second = sorted((tmp_path / "traces").iterdir())
    assert first.name.startswith("org_tiny_2.") and first.suffix == (".gz" if zips else ".json")
    assert (sizes_in(first), sizes_in(second)) == (sizes[1:4], sizes[1:5])


def test_a_trace_ends_after_so_many_steps(tmp_path):
    most = random.randint(1, 4)
    profiler = make(tmp_path, max_iterations=most, torch_profiler_record_shapes=True)
    profiler.switch(on=True)
    for size in range(2, 9):
        step(profiler, size)
    profiler.switch(on=False)
    [trace] = (tmp_path / "traces").iterdir()
    assert sizes_in(trace) == list(range(2, 2 + most))


def test_a_trace_that_cannot_be_written_ends_no_worker(tmp_path):
    profiler = make(tmp_path)
    (tmp_path / "traces").rmdir()
    with capture_logs() as logs:
        profiler.switch(on=True)
        step(profiler, 2)
        profiler.switch(on=False)
    assert logs[-1]["event"] == "a profile could not be written"
    step(profiler, 2)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "traces").write_text("a file")
    with pytest.raises(ModelLoadError, match="'traces' cannot be used as a folder"):
        make(tmp_path)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, "absolute path"),
        ({"torch_profiler_dir": "traces"}, "absolute path"),
        ({"torch_profiler_dir": "/a", "profiler": "cuda"}, "profiler must be one of torch"),
        ({"torch_profiler_dir": "/a", "max_iterations": 0}, "max_iterations is 0"),
        ({"torch_profiler_dir": "/a", "ignore_frontend": True}, "no field ignore_frontend"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(given, reason):
    with pytest.raises(InvalidParameter) as refused:
        ProfilerConfig.read(given)
    assert reason in refused.value.message and refused.value.param == "profiler_config"
    assert ProfilerConfig.read(None) is None
