# /// script
# dependencies = ["aiperf", "httpx", "pytest"]
# ///
"""aiperf: https://github.com/ai-dynamo/aiperf, its command line, which cannot reach a tokenizer of
the default model here, so that lengths are in bytes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

URL = os.environ["SERVER_URL"]
PROFILES = Path(os.environ["SERVER_PROFILES"])
NUM_REQUESTS = 12


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[])
    of_bytes = Tokenizer(model)
    of_bytes.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    of_bytes.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=of_bytes).save_pretrained(folder)
    return folder


@pytest.fixture
def profile(tokenizer, tmp_path):
    def profile(model, *options):
        command = [sys.executable, "-m", "aiperf", "profile", "-m", model, "--url", URL]
        command += ["--tokenizer", str(tokenizer), "--ui", "none", "--artifact-dir", str(tmp_path)]
        command += ["--request-count", str(NUM_REQUESTS), "--concurrency", "3"]
        command += ["--synthetic-input-tokens-mean", "200", "--use-server-token-count", *options]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return json.loads((tmp_path / "profile_export_aiperf.json").read_text())

    return profile


def served():
    text = httpx.get(f"{URL}/metrics").text
    counts = {}
    for line in text.splitlines():
        if line.startswith("tandem_generation_tokens_total"):
            counts[line.partition("{")[2].partition("}")[0]] = float(line.rpartition(" ")[2])
    return sum(counts.values())


# It reads no usage from a stream that ends with `response.incomplete`, as most of these do.
@pytest.mark.parametrize(
    ("kind", "streaming"),
    [
        *((kind, ("--streaming",)) for kind in ("chat", "completions", "messages")),
        ("responses", ()),
    ],
)
def test_texts(profile, kind, streaming):
    before = served()
    found = profile(
        "smollm2-135m-instruct",
        *("--endpoint-type", kind, "--output-tokens-mean", "10", "--reset-kv-cache", *streaming),
    )
    assert found["request_count"]["avg"] == NUM_REQUESTS and "error_request_count" not in found
    written = found["total_usage_completion_tokens"]["avg"]
    assert NUM_REQUESTS <= written <= 10 * NUM_REQUESTS and served() - before == written
    assert found["request_latency"]["avg"] > 0
    if streaming:
        assert 0 < found["time_to_first_token"]["avg"] < found["request_latency"]["avg"]
        assert found["inter_token_latency"]["avg"] > 0


def test_a_profile_of_the_server(profile):
    before, model = set(PROFILES.iterdir()), "smollm2-135m-instruct"
    profile(model, "--output-tokens-mean", "4", "--server-profiler")
    until_s = time.monotonic() + 60
    while not [one for one in set(PROFILES.iterdir()) - before if one.name.startswith(model)]:
        assert time.monotonic() < until_s
        time.sleep(0.1)


def test_embeddings(profile):
    found = profile("all-minilm-l6-v2", "--endpoint-type", "embeddings")
    assert found["request_count"]["avg"] == NUM_REQUESTS and "error_request_count" not in found
