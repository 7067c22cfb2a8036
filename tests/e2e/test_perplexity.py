"""`tandem perplexity` as a user runs it: a server's model measures as the same one loaded anew."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from server.cli import app

pytestmark = pytest.mark.e2e

WORDS = ("the quick brown fox", " jumps\n", " 1984", " größe", " {x}", "zzqz")


def perplexity(*args, code=0):
    command = ["perplexity", *map(str, args), "--json"]
    if code == 0:
        program = [sys.executable, "-m", "server"]
        done = subprocess.run([*program, *command], capture_output=True, text=True, check=True)
        return json.loads(done.stdout)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == code, done.output
    return done.stderr


def test_served_and_loaded_measure_alike(server, tiny_llama, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(WORDS[i * i % 13 % len(WORDS)] for i in range(400)))
    sizes = ("--text", text, "--context", 64, "--passages", 5)
    served = perplexity("--url", server.url, "--model", "tiny", *sizes)
    folder = tiny_llama()  # as the server's
    loaded = perplexity("--model", folder, "--against", folder, *sizes, "--max-kl", 0)
    assert loaded["kl_divergence"] == 0.0
    assert served["tokens"] == 5 * 31
    assert served["classes"].keys() == loaded["classes"].keys()
    pairs = [(one, loaded["classes"][name]) for name, one in served["classes"].items()]
    for one, other in [(served, loaded), *pairs]:
        for name in ("tokens", "perplexity", "perplexity_error", "bits_per_byte"):
            assert one[name] == other[name], name


def test_what_cannot_be_measured_ends_with_code_2(server, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("too short")
    assert "at least one passage of 512" in perplexity("--model", "smollm2", "--text", text, code=2)
    images = ("--model", "tandem-shapes", "--text", text)
    assert "makes images" in perplexity(*images, code=2)
    assert "tandem-shapes" in perplexity("--url", server.url, *images, code=2)
    gone = ("--url", "http://127.0.0.1:9", "--text", text)
    assert "no server answers" in perplexity(*gone, code=2)
