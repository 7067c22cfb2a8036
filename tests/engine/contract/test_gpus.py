"""Which GPU a worker gets, without one."""

import pytest

from engine.contract.gpus import VARIABLE, device_of_account, gpu_index, gpu_variables
from engine.contract.settings import EngineConfig
from engine.errors import InvalidParameter, ModelLoadError
from engine.runtime.device import choose_device


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_names_of_devices(name):
    assert EngineConfig(device=name).device == name


@pytest.mark.parametrize(
    "name", ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "cuda:1 ", "CPU"]
)
def test_names_that_are_none(name):
    with pytest.raises(InvalidParameter, match="auto, cpu, cuda or cuda:N"):
        EngineConfig(device=name)


@pytest.mark.parametrize(
    ("device", "visible", "seen"),
    [
        ("cuda:1", None, "1"),
        ("cuda:0", ("5", "7"), "5"),
        ("cuda:1", ("5", "GPU-8932f937"), "GPU-8932f937"),
        ("cuda:2", ("5", "7"), ""),
        ("cuda:0", (), ""),
    ],
)
def test_a_worker_sees_its_gpu_only(device, visible, seen):
    assert gpu_variables(device, visible) == {VARIABLE: seen}


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
def test_without_an_index_nothing_changes(device):
    assert gpu_variables(device, ("5", "7")) == {}
    assert gpu_index(device) is None


def test_each_gpu_has_an_account_of_its_own():
    assert device_of_account("cpu", "auto") == device_of_account("cpu", "cpu") == "cpu"
    assert device_of_account("cuda", "auto") == device_of_account("cuda", "cuda:0") == "cuda:0"
    assert device_of_account("cuda", "cuda:1") == "cuda:1"


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ModelLoadError, match="device is cuda:3, but"):
        choose_device("cuda:3")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert choose_device("cuda:3") == choose_device("cuda") == choose_device("auto") == "cuda"
