"""The kernels of a GPU, interpreted, under whole models: bits that no neighbour changes."""

import random

import pytest
import torch

from engine.llm.decision import ScheduleDecision
from engine.llm.runner.model_runner import ModelRunner
from engine.llm.runner.step_graph import AtOnce
from engine.models.registry import create_model
from kernels import _triton, native
from tests.helpers.llm.recorder import Recorder
from tests.helpers.llm.steps import first_step, part, resolved
from tests.helpers.models.tiny_pairs import PagedTexts, create_pair, named_weights

pytestmark = pytest.mark.skipif(not _triton.AVAILABLE, reason="Triton is not installed")

CPU = torch.device("cpu")
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
PARTICULAR = {
    "Gemma3": {"sliding_window": 5, "sliding_window_pattern": 2},
    "Gemma4": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 5,
        "global_head_dim": 24,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 131,
    },
}
"""Options of families, such as a layer that slides beside one that does not."""


@pytest.fixture(autouse=True)
def gpu_kernels(monkeypatch):
    """Triton's kernels take CPU tensors, as if they were on a GPU; the CPU's own take none."""
    monkeypatch.setattr(_triton, "runs_on", lambda *tensors: True)
    monkeypatch.setattr(native, "runs_on", lambda *tensors: False)


def make_model(dtype, deterministic, family="Llama"):
    _, theirs, config = create_pair(family, 5, **(SMALL | PARTICULAR.get(family, {})))
    model = create_model(config, dtype=dtype, deterministic=deterministic)
    model.load_weights(named_weights(theirs))
    return model, config


def logits_alone_and_among_others(dtype, deterministic, family="Llama", kv_dtype=None):
    """Give the logits of a text of 12 tokens: in one piece, and in pieces beside other texts."""
    model, config = make_model(dtype, deterministic, family)
    text, other, third = ([random.randrange(131) for _ in range(n)] for n in (12, 25, 7))
    texts = PagedTexts(model, config, kv_dtype=kv_dtype)
    texts.add(0, text)
    alone = texts.run(0, [12])
    texts = PagedTexts(model, config, kv_dtype=kv_dtype)
    for text_id, token_ids in enumerate((text, other, third)):
        texts.add(text_id, token_ids)
    pieces = [
        texts.step({1: 18, 0: 4})[0],
        texts.step({0: 1, 1: 1, 2: 1})[0],
        texts.step({2: 3, 0: 6, 1: 5})[0],
        texts.step({0: 1, 2: 1})[0],
    ]
    return alone, torch.cat(pieces)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("Llama", torch.bfloat16),
        ("Llama", torch.float32),
        # Interpreted, it takes seconds.
        (random.choice(["Gemma3", "Gemma4"]), random.choice([torch.bfloat16, torch.float32])),
    ],
)
def test_a_text_has_the_same_logits_whatever_runs_beside_it(dtype, family):
    random.seed(seed := random.getrandbits(32))
    alone, among_others = logits_alone_and_among_others(dtype, True, family)
    assert torch.equal(alone, among_others), f"seed {seed}"


@pytest.mark.drawn(1)  # the kernels have tests of both
@pytest.mark.parametrize("kv_dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_packed_cache_keeps_them_too(kv_dtype):
    alone, among_others = logits_alone_and_among_others(torch.bfloat16, True, kv_dtype=kv_dtype)
    assert torch.equal(alone, among_others)


def test_without_determinism_the_check_fails():
    """The test above can fail: PyTorch's fp32 products depend on the number of rows."""
    for _ in range(5):
        alone, among_others = logits_alone_and_among_others(torch.float32, deterministic=False)
        torch.testing.assert_close(alone, among_others, rtol=1e-3, atol=1e-3)
        if not torch.equal(alone, among_others):
            return
    raise AssertionError("five texts had the same bits by chance")


def test_recorded_steps_have_the_bits_of_eager_ones():
    model, config = make_model(torch.bfloat16, deterministic=True)
    # Recorded for contexts of 600 keys: in two splits, where an eager step has one.
    facts = resolved(num_kv_blocks=16, max_num_seqs=6, max_model_len=600, deterministic=True)
    recorder = Recorder()
    runners = [
        ModelRunner(model, config, facts, CPU),
        ModelRunner(model, config, facts, CPU, recorder=recorder, background=AtOnce()),
    ]
    blocks = {1: [3, 1, 4], 2: [5, 9, 2], 3: [6, 10, 12]}
    prompts = {1: [1] * 4, 2: [7] * 3, 3: [2]}
    for runner in runners:
        runner.execute(first_step(prompts, blocks))
    for step in range(5):
        decision = ScheduleDecision(
            scheduled=[
                part(i, [step + i], len(p) + step, blocks[i], num_output=step + 1)
                for i, p in prompts.items()
            ]
        )
        for runner in runners:
            runner.execute(decision)
    assert recorder.num_replays == 2
    eager, recorded = (runner.kv.layers for runner in runners)
    for ours, theirs in zip(recorded, eager, strict=True):
        assert torch.equal(ours[:16], theirs)
