"""What `make serve` shows while it installs, and which build of torch it takes."""

import io
import json
import subprocess
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tools import install

CUDA = ["filelock", "nvidia-cublas-cu12==12.8.4.1; platform_system == 'Linux'"]
CPU = ["filelock", "sympy>=1.13"]


class Machine:
    """Stands in for pip, the network and the disk; notes what pip was run with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.needs = CPU
        self.has_driver = self.has_torch = False
        self.free_gb = 100.0
        self.is_reachable = True
        self.runs: list[list[str]] = []
        self.asked: list[str] = []
        monkeypatch.setattr(install, "_has_driver", lambda: self.has_driver)
        monkeypatch.setattr(install, "_is_there", lambda module: self.has_torch)
        monkeypatch.setattr(install, "_run_pip", self.run)
        monkeypatch.setattr(install.subprocess, "run", self.dry_run)
        monkeypatch.setattr(install.urllib.request, "urlopen", self.open)
        disk = lambda path: SimpleNamespace(free=self.free_gb * 1e9)  # noqa: E731
        monkeypatch.setattr(install.shutil, "disk_usage", disk)

    def run(self, arguments: list[str]) -> int:
        self.runs.append(arguments)
        return 0

    def dry_run(self, command: list[str], **options: Any) -> Any:
        assert options["timeout"] <= 60
        report = {"install": [{"metadata": {"requires_dist": self.needs}}]}
        return SimpleNamespace(stdout=json.dumps(report).encode())

    def open(self, url: str, timeout: float) -> Any:
        assert timeout <= 5
        self.asked.append(url)
        if not self.is_reachable:
            raise OSError("no route")
        return io.BytesIO()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


WHOLE = ["install", "--constraint", str(install.HOME / "constraints.txt"), "-e", ".[dev]"]


def test_without_a_driver_torch_comes_without_cuda(machine: Machine) -> None:
    machine.needs = CUDA
    assert install.main(".[dev]") == 0
    first, second = machine.runs
    assert first[:3] == ["install", "--index-url", install.CPU_INDEX]
    assert first[3].startswith("torch>=")
    assert second == WHOLE


@pytest.mark.parametrize(
    "change",
    [
        lambda machine: None,  # pip gives a build without CUDA anyway
        lambda machine: setattr(machine, "has_driver", True),
        lambda machine: setattr(machine, "has_torch", True),
    ],
)
def test_elsewhere_pip_takes_what_it_takes(
    machine: Machine, change: Callable[[Machine], None]
) -> None:
    change(machine)
    if machine.has_driver or machine.has_torch:
        machine.needs = CUDA
    assert install.main(".[dev]") == 0
    assert machine.runs == [WHOLE]
    assert machine.asked == [], "nobody waits for an index that is not needed"


def test_an_index_out_of_reach_is_said_and_done_without(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.needs, machine.is_reachable = CUDA, False
    assert install.main(".[dev]") == 0
    assert machine.runs == [WHOLE]
    error = capsys.readouterr().err
    assert "cannot be reached" in error and "6.3 GB on disk" in error


@pytest.mark.parametrize(
    "failure",
    [
        subprocess.TimeoutExpired("pip", 60),
        subprocess.CalledProcessError(1, "pip"),
        ValueError("no JSON"),
    ],
)
def test_a_question_that_fails_is_left_to_the_installation(
    machine: Machine, failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(install.subprocess, "run", fail)
    assert install.main(".[dev]") == 0
    assert machine.runs == [WHOLE]


@pytest.mark.parametrize(("has_driver", "needed"), [(False, 1.7), (True, 6.3)])
def test_a_full_disk_is_said_before_anything_is_fetched(
    machine: Machine, has_driver: bool, needed: float, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.has_driver, machine.free_gb = has_driver, needed - 0.1
    assert install.main(".[dev]") == 1
    assert machine.runs == []
    assert f"need {needed} GB; the disk has only {needed - 0.1:.1f} GB" in capsys.readouterr().err
    machine.has_torch = True
    assert install.main(".[dev]") == 0, "what is there already needs no room"


def test_lines_of_pip_that_are_worth_telling() -> None:
    told = {
        "Collecting fastapi>=0.115 (from tandem-server==0.1.0)\n": ["looking for fastapi>=0.115"],
        "Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (190.5 MB)\n": [
            "fetching torch 2.13.0 (190.5 MB)"
        ],
        "  Downloading https://x/y/scipy-1.17.0-cp311.whl.metadata (62 kB)\n": [
            "fetching scipy 1.17.0 (62 kB)"
        ],
        "Installing collected packages: a, b, c\n": ["unpacking 3 packages"],
        "Requirement already satisfied: a in b\n": [],
        "\n": [],
    }
    assert {line: list(install.steps(line)) for line in told} == told


def test_pip_that_fails_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    assert install._run_pip(["install", "--no-index", "no-such-package-here"]) != 0
    assert "no-such-package-here" in capfd.readouterr().err
