"""The benchmark of upscalers, with a network of a few weights."""

import sys
from pathlib import Path

import pytest
import torch

from loadtest.results import load_any_result
from tests.helpers.upscaling.upscaling_nets import compact_net
from tools import bench_upscaling


def test_it_writes_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"params": compact_net().state_dict()}, tmp_path / "net.pth")
    threads = torch.get_num_threads()
    command = ["bench", str(tmp_path / "net.pth"), "--tile", "8", "--rounds", "2"]
    command += ["--threads", str(threads), "--output", str(tmp_path / "result.json")]
    monkeypatch.setattr(sys, "argv", command)
    bench_upscaling.main()
    [task] = load_any_result(tmp_path / "result.json")["tasks"]
    names = [run["name"].partition(" (")[0] for run in task["runs"]]
    assert names == ["Tandem", "plain PyTorch"]
    assert all(len(run["seconds"]) == 2 for run in task["runs"])
