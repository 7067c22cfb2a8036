"""The command line: every setting is an option, and a bad one is one line."""

import gc
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import server.cli
import server.process.serve
from engine.processes.own_packages import HOME
from engine.version import __version__
from server.cli import app
from server.process.help import _GROUPS, FEW
from server.settings.reference import setting_rows


@pytest.fixture
def invoke(monkeypatch):
    """`invoke(*args)` → (exit code, output, the settings that would have been served)."""
    monkeypatch.setenv("COLUMNS", "200")
    served = []

    def run(settings):
        served.append(settings)
        return 0

    monkeypatch.setattr(server.process.serve, "run", run)

    def call(*args):
        result = CliRunner().invoke(app, list(args))
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert gc.isenabled()
        return result.exit_code, result.output, served[-1] if served else None

    return call


def test_version(invoke):
    assert invoke("version")[:2] == (0, f"{__version__}\n")


def test_version_as_an_option(invoke):
    assert invoke("--version")[:2] == (0, f"tandem {__version__}\n")
    assert "--version" in invoke("--help")[1]


def test_no_command_is_described_by_half_a_sentence(invoke):
    output = invoke("--help")[1]
    assert "quantize" in output and "..." not in output.partition("Commands:")[2]


@pytest.mark.parametrize(
    "command",
    [
        "serve",
        "chat",
        "models",
        "plan",
        "perplexity",
        "quantize",
        "kernels",
        "doctor",
        "top",
        "pull",
        "eval",
        "version",
    ],
)
def test_every_command_explains_itself(invoke, command):
    code, output, _ = invoke(command, "--help")
    assert code == 0
    assert "Usage" in output


@pytest.mark.slow
def test_kernels_shows_what_runs_from_any_folder(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    command = [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(HOME)!r})\n"]
    command[-1] += "from server.cli import app; app(['kernels'])"
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CPU" in done.stdout
    assert "rms_norm" in done.stdout


def test_kernels_shows_the_instruction_set_that_a_server_would_use(invoke, monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("TANDEM_CPU_ISA", "x86-64-v3")
    assert invoke("kernels")[0] == 0
    assert invoke("kernels", "--cpu-isa", "native")[0] == 0
    assert [command[command.index("--cpu-isa") + 1] for command in commands] == [
        "x86-64-v3",
        "native",
    ]
    code, output, _ = invoke("kernels", "--cpu-isa", "x86-64-v9")
    assert code == 2 and "x86-64-v3" in output


def test_serve_says_which_distribution_broke_it(invoke, monkeypatch):
    monkeypatch.setattr(server.cli, "foreign_distributions", lambda: ["kernels"])
    code, output, settings = invoke("serve")
    assert code == 2
    assert settings is None
    assert "pip uninstall kernels" in output
    assert "tandem-server" in output


def test_serve_help_shows_what_most_people_need_on_a_page(invoke, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, output, settings = invoke("serve", "--help")
    assert (code, settings) == (0, None)
    assert len(output.splitlines()) < 60
    places = {row.name: output.find(f"\n  {row.option} ") for row in setting_rows()}
    shown = sorted((place, name) for name, place in places.items() if place >= 0)
    assert [name for _, name in shown] == [*FEW]
    assert {"models", "port", "api_keys", "device"} <= {*FEW}
    assert "--help-all" in output


@pytest.mark.parametrize("width", [40, 80, 200])
def test_serve_shows_every_setting_in_full_where_all_are_asked_for(invoke, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    code, output, settings = invoke("serve", "--help-all")
    assert (code, settings) == (0, None)
    words = " ".join(output.split())
    for row in setting_rows():
        assert f" {row.option}" in words, row.option
        assert row.variable in words, row.variable
        assert row.help in words, row.option
        assert (
            output.count(f"\n  {row.option}\n")
            + output.count(f"\n  {row.option} ")
            + (output.count(f"\n  {row.option},"))
            == 1
        ), "in one group"


def test_groups_of_help_name_settings():
    grouped = [name for names in _GROUPS.values() for name in names]
    assert {*grouped, *FEW} <= {row.name for row in setting_rows()}


def test_options_reach_the_settings(invoke):
    code, _, settings = invoke(
        *("serve", "a/model", "--model", "b=other/model", "--port", "0", "--api-key", "x"),
        *("--api-key", "y", "--max-num-seqs", "7", "--no-enable-prefix-caching", "--offline"),
        *("--seed", "-5", "--cors-allow-origin", "*"),
    )
    assert code == 0
    assert [(spec.name, spec.ref) for spec in settings.model_specs] == [
        ("a/model", "a/model"),
        ("b", "other/model"),
    ]
    assert settings.read_api_keys() == ("x", "y")
    assert (settings.port, settings.offline, settings.cors_allow_origins) == (0, True, ("*",))
    engine = settings.engine
    assert (engine.max_num_seqs, engine.enable_prefix_caching, engine.seed) == (7, False, -5)


def test_flags_that_are_not_given_leave_the_file_alone(invoke, tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("offline: true\nengine: {enable_prefix_caching: false}")
    _, _, settings = invoke("serve", "--config", str(path))
    assert settings.offline
    assert not settings.engine.enable_prefix_caching
    _, _, settings = invoke("serve", "--config", str(path), "--no-offline")
    assert not settings.offline


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--port", "x"), ("--port", "'x'")),
        (("--max-num-seqs", "0"), ("--max-num-seqs", "0")),
        (("--api-key", ""), ("--api-key", "visible")),
        (("=x",), ("--model",)),
        (("--config", "/nonexistent"), ("--config",)),
    ],
)
def test_a_bad_setting_is_one_line_and_exit_code_2(invoke, args, words):
    code, output, settings = invoke("serve", *args)
    assert code == 2
    assert settings is None
    assert len(output.splitlines()) == 1
    assert output.startswith("tandem: ")
    assert all(word in output for word in words), output


def test_an_unknown_option_is_exit_code_2(invoke):
    code, output, _ = invoke("serve", "--max-num-seq", "3")
    assert code == 2
    assert "--max-num-seqs" in output


def test_a_bad_url_is_one_line(invoke):
    for command in ("chat", "models"):
        code, output, _ = invoke(command, "--url", "localhost:8000")
        assert code == 2
        assert "--url" in output


SLOW_IMPORTS = (
    "torch",
    "transformers",
    "huggingface_hub",
    "gguf",
    "scipy",
    "matplotlib",
    "IPython",
)


@pytest.mark.parametrize("module", ["cli", "process.serve", "process.draining_server"])
def test_starting_imports_nothing_slow(module):
    code = f"import sys, server.{module}; print([m for m in {SLOW_IMPORTS} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_the_command_line_alone_needs_no_web_framework():
    code = "import sys, server.cli; print([m for m in ('fastapi', 'zmq') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr
