"""Choosing numbers of stages by measurement, with measurements made up."""

import json
import math

import pytest
import torch

import kernels
from kernels import _triton, cache_folder
from kernels.shared import stages
from kernels.tools import tune


@pytest.fixture(autouse=True)
def gpu(monkeypatch, tmp_path):
    """Pretend that there is a GPU, and its file."""
    monkeypatch.setattr(cache_folder, "_folder", tmp_path / "deep")
    monkeypatch.setattr(stages, "_place", lambda: "sm_90, Triton 9")
    stages._measured.cache_clear()
    yield tmp_path / "deep" / "stages.json"
    stages._measured.cache_clear()


class Kernel:
    """Launches whose time depends on the stages they are given."""

    def __init__(self, launches, times):
        self.launches = launches
        self.times = times
        self.last_s = 0.0

    def __call__(self):
        chosen = {launch: stages.num_stages(launch, 3) for launch in self.launches}
        self.last_s = sum(self.times.get((launch, n), 9.0) for launch, n in chosen.items())


def seconds(run):
    run()
    return run.last_s


def test_without_measurements_the_kernels_choice_stands():
    assert stages.num_stages("product 16x32", 4) == 4


def test_the_fastest_is_found_per_kind_of_launch_over_all_its_runs():
    runs = [
        Kernel(["a"], {("a", 2): 1.0, ("a", 5): 2.0}),
        Kernel(["a", "b"], {("a", 2): 8.0, ("a", 5): 3.0, ("b", 4): 0.5}),
    ]
    assert tune.tune(runs, seconds) == {"a": 5, "b": 4}


def test_the_default_wins_ties_and_over_what_cannot_run():
    assert tune.tune([Kernel(["a"], {})], seconds) == {"a": 3}
    too_large = {("a", n): math.inf for n in tune.CANDIDATES if n != 3}
    assert tune.tune([Kernel(["a"], too_large)], seconds) == {"a": 3}


def test_what_was_found_is_used_from_then_on_and_others_findings_are_kept(gpu):
    assert stages.num_stages("a", 3) == 3
    gpu.parent.mkdir()
    gpu.write_text(json.dumps({"sm_80, Triton 9": {"a": 6}, "sm_90, Triton 9": {"b": 1}}))
    stages.save({"a": 5})
    assert stages.num_stages("a", 3) == 5
    assert stages.num_stages("b", 3) == 1
    assert json.loads(gpu.read_text())["sm_80, Triton 9"] == {"a": 6}


@pytest.mark.skipif(not _triton.AVAILABLE, reason="Triton is not installed")
def test_kernels_ask_under_their_names(monkeypatch):
    """Interpreted kernels have no stages: what is tested is who asks."""
    monkeypatch.setattr(_triton, "runs_on", lambda *tensors: True)
    expected = {
        "linear": "linear bfloat16",
        "linear_w8": "linear_w8 bfloat16",
        "linear_gguf": "linear_gguf Q",
        "linear_w4a16": "linear_w4a16 ",
        "linear_nf4": "linear_nf4 ",
        "paged_attention": "paged_attention ",
    }
    for op in kernels.OPS:
        if op.name not in expected:
            continue
        triton, cases = op.implementations()["triton"], op.cases
        for case in cases.CASES:
            inputs = cases.make_inputs(case, torch.bfloat16, torch.device("cpu"))
            if triton.supports(**inputs):
                with stages.observed() as asked:
                    triton.function(**inputs)
                if asked:
                    break
        assert asked and all(name.startswith(expected[op.name]) for name in asked), op.name


def test_a_broken_file_says_nothing(gpu):
    gpu.parent.mkdir()
    gpu.write_text("{")
    assert stages.num_stages("a", 3) == 3


def test_without_a_gpu_nothing_is_read(monkeypatch, gpu):
    gpu.parent.mkdir()
    gpu.write_text(json.dumps({"": {"a": 6}}))
    monkeypatch.setattr(stages, "_place", lambda: "")
    assert stages.num_stages("a", 3) == 3


def test_the_command_says_what_it_lacks(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert tune.main([]) == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().err
