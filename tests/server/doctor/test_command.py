"""`tandem doctor`: what it prints, and that it starts nothing slow."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from server.cli import app
from server.doctor import command
from server.doctor.finding import Finding

FINE = Finding("one", "ok", "as it should be")
LIMITED = Finding("two", "limited", "slow", "do this")
BROKEN = Finding("three", "broken", "gone", "do that")


@pytest.mark.parametrize(
    ("findings", "code", "last"),
    [
        ([FINE], 0, "This machine can serve: tandem serve."),
        ([FINE, LIMITED], 0, "The limited parts are worth fixing."),
        ([BROKEN, FINE, LIMITED], 1, "This machine cannot serve yet. Fix first: three."),
    ],
)
def test_the_verdict_and_the_exit_code(findings, code, last, monkeypatch):
    monkeypatch.setattr(command, "examine", lambda settings: iter(findings))
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == code
    assert result.output.rstrip().endswith(last)
    for one in findings:
        assert f"{one.health:<8}{one.part}: {one.found}\n" in result.output
        assert one.fix is None or f"fix: {one.fix}\n" in result.output
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == code
    report = json.loads(result.output)
    assert report["can_serve"] is (code == 0)
    assert [one["part"] for one in report["findings"]] == [one.part for one in findings]


def test_it_examines_this_machine_without_torch(tmp_path):
    code = "import sys; from server.cli import app\ntry: app(sys.argv[1:])\n"
    code += "finally: assert 'torch' not in sys.modules"
    options = ("--port", "0", "--cache-dir", str(tmp_path / "new"), "--json")
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor", *options], capture_output=True, text=True
    )
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["can_serve"] else 1)
    parts = [one["part"] for one in report["findings"]]
    assert parts[:9] == [
        *("Python", "packages", "processor", "compiler", "GPU"),
        *("cache folder", "disk", "port", "open files"),
    ]
    assert "memory" in parts
    assert all((one["fix"] is None) == (one["health"] == "ok") for one in report["findings"])
    assert not list(tmp_path.iterdir()), "it writes nothing"


def test_a_wrong_option_is_one_line():
    result = CliRunner().invoke(app, ["doctor", "--cpu-isa", "x86-64-v9"])
    assert result.exit_code == 2
    assert result.output.startswith("tandem: --cpu-isa") and result.output.count("\n") == 1
