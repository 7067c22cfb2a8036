"""`tandem plan`: what it orders, prints, and ends with."""

import json

import pytest
from typer.testing import CliRunner

from server.cli import app

ROW = {
    "quantization": "none",
    "is_stored": True,
    "kv_cache_dtype": "bfloat16",
    "weight_bytes": 3 << 30,
    "kv_bytes": 1 << 30,
    "step_bytes": 5 << 20,
    "process_bytes": 1 << 29,
    "total_bytes": 9 << 29,
    "fits": True,
    "max_tokens": 12345,
    "decode_tokens_per_s": 1234.5,
    "prefill_tokens_per_s": None,
    "flags": ["--kv-cache-memory-gib 5"],
}
PLAN = {
    "model": "m",
    "kind": "text",
    "device": "NVIDIA L4",
    "replicas": 1,
    "free_bytes": 21 << 30,
    "concurrency": 2,
    "context": 100,
    "rows": [ROW],
}


@pytest.fixture(autouse=True)
def reports(child):
    child["lines"] = [{"report": PLAN}]


def invoke(*arguments):
    result = CliRunner().invoke(app, ["plan", *map(str, arguments)], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout, result.stderr


def test_what_the_process_logs_is_written_by_this_one(child):
    child["log"] = ["download failed\n", "or not\n"]
    assert invoke("--model", "x")[2] == "download failed\nor not\n"


def test_what_is_ordered_and_printed(child):
    arguments = ("--model", "a=/x/a", "--gpu", "l4", "--concurrency", 2, "--context", 100)
    code, output, _ = invoke(*arguments, "--kv-cache-dtype", "int8", "--replicas", 3)
    assert code == 0
    [order] = child["orders"]
    wanted = {"model": "/x/a", "gpu": "l4", "concurrency": 2, "context": 100}
    assert order | wanted == order
    assert (order["config"]["kv_cache_dtype"], order["config"]["replicas"]) == ("int8", 3)
    assert order["config"]["max_loras"] is None
    for shown in ("NVIDIA L4", "2 texts of 100 tokens", "3.00 GiB", "5.0 MiB", "12,345", "1,234/s"):
        assert shown in output
    assert "  --kv-cache-memory-gib 5\n" in output
    assert json.loads(invoke(*arguments, "--json")[1]) == PLAN


def test_adapters_are_ordered_as_serve_takes_them(child):
    lora = ("--lora", "a=./a", "--lora", "b=./b", "--max-loras", 1, "--lora-memory-gib", 0.5)
    assert invoke("--model", "m", *lora)[0] == 0
    config = child["orders"][0]["config"]
    assert (config["lora"], config["max_loras"], config["lora_memory_gib"]) == (
        ["a=./a", "b=./b"],
        1,
        0.5,
    )
    code, output, error = invoke("--model", "m", "--max-loras", 3, "--max-cpu-loras", 2)
    assert (code, output) == (2, "") and "max_cpu_loras" in error


def test_the_exit_code_says_whether_it_fits(child):
    child["lines"] = [{"report": {**PLAN, "rows": [{**ROW, "fits": False}]}}]
    code, output, _ = invoke("--model", "a")
    assert code == 1
    assert "--max-model-len 6172" in output


def test_what_is_refused(child):
    child["lines"], child["code"] = [{"problem": "gpu is 'x'; it must be one of …"}], 2
    assert invoke("--model", "a", "--gpu", "x") == (
        2,
        "",
        "tandem: gpu is 'x'; it must be one of …\n",
    )
    for arguments in (
        ("--model", "=a"),
        ("--model", "a", "--concurrency", 0),
        ("--model", "a", "--context", 0),
        ("--model", "a", "--kv-cache-dtype", "int3"),
        (),
    ):
        code, output, error = invoke(*arguments)
        assert (code, output) == (2, "") and error


def test_a_folder_of_adapters_gives_places(child, tmp_path):
    """As many as the server has then, without a word of runtime loading."""
    invoke("--model", "/x/a", "--loras-dir", tmp_path, "--lora-dtype", "model")
    [order] = child["orders"]
    assert (order["config"]["max_loras"], order["config"]["lora_dtype"]) == (16, "model")
