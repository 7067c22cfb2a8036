"""Steps before the first request: which they are, and that a GPU compiles nothing after them."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from engine.llm.runner.warm_up import Text, decision, largest_steps, warm_up_steps
from kernels import _triton
from tests.helpers.llm.steps import resolved

ROOT = Path(__file__).parents[4]
SCRIPT = ROOT / "tests/helpers/llm/served_launches.py"
MODELS = [
    ("llama", {}),
    ("llama", {"deterministic": False, "max_num_seqs": 5, "block_size": 32}),
    ("odd", {"block_size": 7, "max_num_seqs": 20}),
    ("qwen3", {"dtype": "float32", "max_num_seqs": 3}),
    ("windowed", {"max_num_seqs": 9}),
    ("mixture", {"max_num_seqs": 20}),
    ("llama", {"max_num_batched_tokens": 16, "max_num_seqs": 16, "max_model_len": 400}),
]


def stalls(cases, *arguments, num_steps=10):
    seed = str(random.randrange(1 << 31))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), seed, str(num_steps), json.dumps(cases), *arguments],
        cwd=SCRIPT.parents[3],
        env={"PYTHONPATH": str(SCRIPT.parents[3]), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not _triton.AVAILABLE, reason="Triton is not installed")
def test_nothing_is_compiled_after_warming_up():
    models = random.sample(MODELS, 4)
    found = stalls(models)
    for (model, facts), one in zip(models, found, strict=True):
        assert one["warmed"] > 5
        assert one["launches"] > 50
        assert one["missed"] == [], (model, facts)


@pytest.mark.slow
@pytest.mark.skipif(not _triton.AVAILABLE, reason="Triton is not installed")
def test_row_counts_that_are_specialised_would_be_found():
    [found] = stalls([("llama", {"max_num_seqs": 9})], "specialised")
    kernels = {line.split()[0] for line in found["missed"]}
    assert kernels == {"_linear_kernel", "_linear_add_kernel"}


def rows_of(steps):
    return [sum(text.num_tokens for text in step) for step in steps]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "limits",
    [
        {"max_num_seqs": 1, "max_num_batched_tokens": 1},
        {"max_num_seqs": 3, "max_num_batched_tokens": 5},
        {"max_num_seqs": 200, "max_num_batched_tokens": 512},
        {"max_num_seqs": 64, "max_num_batched_tokens": 512, "max_model_len": 2},
    ],
)
def test_no_step_is_larger_than_the_limits(device, limits):
    config = resolved(device=device, **limits)
    for step in warm_up_steps(config) + largest_steps(config):
        assert 1 <= sum(text.num_tokens for text in step) <= config.max_num_batched_tokens
        assert len(step) <= config.max_num_seqs
        assert all(t.num_tokens + t.num_cached <= config.max_model_len for t in step)


def test_a_gpu_gets_a_step_of_each_kind():
    config = resolved(
        device="cuda", max_num_seqs=100, max_num_batched_tokens=512, max_model_len=600
    )
    steps = warm_up_steps(config)
    decodes = [step for step in steps if step[0].num_tokens == 1]
    assert {1, 17, 65} <= set(rows_of(decodes))
    assert {2, 17, 65} <= set(rows_of([s for s in steps if s[0].num_tokens > 1]))
    assert any(step[0].num_cached >= 512 for step in decodes)
    asked = [step[0].sampling for step in steps]
    assert {one.logprobs for one in asked} == {None, 0, 1}
    assert {one.prompt_logprobs for one in asked} == {None, 0, 1}
    assert any(one.logit_bias for one in asked)


def test_the_largest_steps_fill_the_budget():
    config = resolved(device="cuda", max_num_seqs=8, max_num_batched_tokens=64, max_model_len=256)
    chunk, decodes = largest_steps(config)
    assert [text.num_tokens for text in chunk] == [64]
    assert len(decodes) == 8
    assert {text.num_cached + text.num_tokens for text in decodes} == {256}


def test_steps_write_to_the_first_block_only():
    decided = decision([Text(1, 9), Text(3)], block_size=4)
    assert [part.blocks for part in decided.scheduled] == [[([0, 0, 0], 0)], [([0], 0)]]
    assert [part.start for part in decided.scheduled] == [9, 0]
    assert all(new.seq_id < 0 for new in decided.new)
