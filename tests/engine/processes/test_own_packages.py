"""Our packages beside others of the same names."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine.processes import own_packages
from engine.processes.own_packages import HOME, NAMES, foreign_distributions, module_command

SHOW_PATH = "import json; (lambda *a, **k: print(json.dumps(sys.path)))"


def test_all_of_them_are_at_home():
    assert [name for name in NAMES if not (HOME / name / "__init__.py").is_file()] == []


@pytest.mark.parametrize("name", ["engine", "kernels"])
def test_a_package_of_the_users_is_not_taken_for_ours(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong package')")
    command = module_command("engine.worker.loop")
    done = subprocess.run(command, cwd=tmp_path, input=b"", capture_output=True, check=False)
    assert b"standard input ended before the worker had read what to load" in done.stderr
    assert b"the wrong package" not in done.stderr


def test_arguments_arrive(tmp_path):
    command = module_command("json.tool", "--help")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "usage:" in done.stdout


def test_standard_modules_come_first_where_ours_are_installed(monkeypatch):
    # A folder that is on the path already, as site-packages is, must not move to its front.
    installed = next(path for path in sys.path if path.endswith("site-packages"))
    monkeypatch.setattr(own_packages, "HOME", Path(installed))
    command = [part.replace("runpy.run_module", SHOW_PATH) for part in module_command("x")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)[0] != installed


@pytest.mark.parametrize("name", NAMES)
def test_a_distribution_that_writes_over_ours_is_found(tmp_path, name):
    assert foreign_distributions(tmp_path) == []
    info = tmp_path / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text("unrelated/__init__.py,,\n")
    assert foreign_distributions(tmp_path) == []
    (info / "RECORD").write_text(f"{name}/__init__.py,,\n")
    assert foreign_distributions(tmp_path) == [name]
