import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from loadtest.cli import app
from loadtest.machine import command_line
from loadtest.markdown import END_MARK, begin_mark
from loadtest.report import COMMAND
from loadtest.results import load_any_result

ROOT = Path(__file__).parents[2]


async def loadtest(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadtest", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


@pytest.mark.slow
async def test_a_run_ends_in_a_table_and_json(fake_openai: Any, tmp_path: Path) -> None:
    result = tmp_path / "r.json"
    process = await loadtest(
        *("run", "--url", fake_openai.url, "--model", "m", "-c", "4", "--slo", "ttft=5000"),
        *("--json", str(result), "--pid", str(os.getpid()), "--api-key", "hidden"),
    )
    output = (await process.communicate())[0].decode()
    assert process.returncode == 0, output
    assert "12 ok, 0 failed of 12" in output
    assert "goodput" in output
    document = load_any_result(result)
    assert document["summary"]["output_tokens"] == 12 * 64
    assert document["summary"]["slo"]["ratio"] == 1.0
    assert document["machine"]["cores"] >= 1
    assert "hidden" not in result.read_text()
    assert len(fake_openai.seen) == 4 + 12
    assert fake_openai.seen[0].headers["authorization"] == "Bearer hidden"


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["closed", "poisson"])
async def test_other_scenarios(fake_openai: Any, tmp_path: Path, scenario: str) -> None:
    result = tmp_path / "r.json"
    process = await loadtest(
        *("run", "--url", fake_openai.url, "--model", "m", "--scenario", scenario, "-n", "5"),
        *("--rate", "100", "--warmup", "0"),
        *("--prompt-tokens", "187", "--output-tokens", "22", "--endpoint", "chat"),
        *("--json", str(result)),
    )
    output = (await process.communicate())[0].decode()
    assert process.returncode == 0, output
    document = load_any_result(result)
    assert document["workload"]["name"] == scenario
    assert document["summary"]["num_ok"] == 5
    assert [row["prompt_tokens"] for row in document["requests"]] == [187] * 5
    assert [row["output_tokens"] for row in document["requests"]] == [22] * 5


@pytest.mark.slow
async def test_ctrl_c_gives_partial_results(fake_openai: Any, tmp_path: Path) -> None:
    fake_openai.token_s = 0.002
    result = tmp_path / "r.json"
    process = await loadtest(
        *("run", "--url", fake_openai.url, "--model", "m", "-c", "2", "-n", "5000"),
        *("--warmup", "0", "--json", str(result)),
    )
    await fake_openai.wait_for_requests(5)
    process.send_signal(signal.SIGINT)
    output = (await process.communicate())[0].decode()
    assert process.returncode == 130, output
    assert "interrupted: partial results" in output
    document = load_any_result(result)
    assert document["partial"] is True
    assert 0 < document["summary"]["num_ok"] < 5000


@pytest.mark.slow
async def test_failures_are_shown_and_set_the_exit_status(fake_openai: Any) -> None:
    async def fail(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(b'HTTP/1.1 429 No\r\n\r\n{"error": {"message": "the queue is full"}}')

    fake_openai.answer = fail
    arguments = ("run", "--url", fake_openai.url, "--model", "m")
    process = await loadtest(*arguments, "--warmup", "0", "-n", "3")
    output = (await process.communicate())[0].decode()
    assert process.returncode == 1, output
    assert "3 x HTTP 429: the queue is full" in output
    for more, message in (
        ([], "a warm-up request failed: HTTP 429: the queue is full"),
        (["--warmup", "0", "--pid", "999999999"], "there is no process 999999999 to watch"),
        (["--url", "localhost:8000"], "'localhost:8000' is no http:// or https:// URL"),
    ):
        process = await loadtest(*arguments, *more)
        output = (await process.communicate())[0].decode()
        assert process.returncode == 2
        assert output.strip() == f"error: {message}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slo", "speed=3"], "'speed' is not one of"),
        (["--prompt-tokens", "9:3"], "the lower one first"),
        (["--extra-body", "[1]"], "not a JSON object"),
        (["--extra-body", "{"], "Expecting property name"),
        (["-c", "0"], "should be greater than or equal to 1"),
    ],
)
def test_wrong_options_name_the_option(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["run", "--model", "m", *arguments])
    assert result.exit_code == 2
    assert arguments[0] in result.output
    assert message in " ".join(result.output.replace("│", " ").split())


def test_keys_are_not_stored() -> None:
    line = command_line(["run", "--api-key", "s3cret", "--api-key=s3cret", "-c", "1"])
    assert line == "python -m loadtest run --api-key '***' '--api-key=***' -c 1"


def test_the_page_is_checked(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    raw = ROOT / "docs" / "benchmarks" / "raw"
    marks = [begin_mark(path.stem, COMMAND) + END_MARK for path in raw.glob("*.json")]
    page.write_text("".join(marks))
    arguments = ["report", "--raw", str(raw), "--page", str(page)]
    assert CliRunner().invoke(app, [*arguments, "--check"]).exit_code == 1
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert CliRunner().invoke(app, [*arguments, "--check"]).exit_code == 0
    page.write_text(page.read_text().replace(END_MARK, f"typed by hand{END_MARK}", 1))
    assert CliRunner().invoke(app, [*arguments, "--check"]).exit_code == 1


def test_the_committed_page_is_what_its_raw_results_give() -> None:
    raw, page = ROOT / "docs" / "benchmarks" / "raw", ROOT / "docs" / "benchmarks.md"
    arguments = ["report", "--raw", str(raw), "--page", str(page), "--check"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    for path in raw.glob("*.json"):
        assert json.loads(path.read_text())["command"].startswith(
            ("python -m loadtest", "python -m tools.")
        )
