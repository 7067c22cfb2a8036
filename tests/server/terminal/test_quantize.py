"""`tandem quantize`: what it orders and prints."""

import json

import pytest
from typer.testing import CliRunner

from server.cli import app

REPORT = {
    "model": "m",
    "method": "int4",
    "output": "/x/made",
    "bytes_before": 10 << 20,
    "bytes_after": 3 << 20,
    "bits": 4,
    "group_size": 64,
    "layers": 21,
    "relative_error": 0.084,
}


@pytest.fixture(autouse=True)
def reports(child):
    child["lines"] = [{"report": REPORT}]


def invoke(*arguments):
    result = CliRunner().invoke(app, ["quantize", *map(str, arguments)], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout, result.stderr


def test_what_is_ordered_and_printed(child):
    arguments = ("--model", "a=/x/a", "--method", "INT4", "--output", "/x/made")
    code, output, _ = invoke(*arguments, "--group-size", 64)
    assert code == 0
    [order] = child["orders"]
    wanted = {"model": "/x/a", "method": "int4", "output": "/x/made", "group_size": 64}
    assert order | wanted == order and order["bits"] is None and order["calibration"] is None
    for shown in ("10.0 MiB → 3.0 MiB", "21 layers in groups of 64", "8.4%", "tandem perplexity"):
        assert shown in output
    assert json.loads(invoke(*arguments, "--json")[1]) == REPORT


def test_of_few_bits_it_is_said_that_sixteen_would_be_better(child):
    report = {**REPORT, "few_bits_before": ["Q4_1", "Q8_0"]}
    child["lines"] = [{"report": report}]
    _, output, _ = invoke("--model", "smollm2", "--method", "gguf-q4_0", "--output", "/x/made")
    assert "already has few bits per weight (Q4_1, Q8_0)" in output


def test_what_is_refused(child):
    child["lines"], child["code"] = [{"problem": "made exists already"}], 2
    code, output, error = invoke("--model", "a", "--method", "int4", "--output", "/x/made")
    assert (code, output, error) == (2, "", "tandem: made exists already\n")
    for arguments in (("--model", "a", "--method", "int4"), ("--model", "a", "--output", "/x")):
        assert invoke(*arguments)[0] == 2
