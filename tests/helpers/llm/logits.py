"""The logits that tokens were drawn from, bit for bit."""

import torch

from engine.llm.runner.model_runner import ModelRunner
from engine.weights.loader import load_model_config
from engine.weights.source import Checkpoint

VOCAB = 400


class LogitsLog:
    """What each sequence's tokens were drawn from, by prompt, index and position."""

    def __init__(self):
        self._sequences = {}
        self.rows = {}

    def attach(self, monkeypatch):
        apply_changes, draw = ModelRunner._apply_changes, ModelRunner._draw

        def note_new(runner, decision):
            # Warming up counts down from -1.
            for new in (new for new in decision.new if new.seq_id >= 0):
                self._sequences[new.seq_id] = (tuple(new.prompt_token_ids), new.index)
            apply_changes(runner, decision)

        def note_logits(runner, step_rows, logits, outputs):
            for drawn, row in zip(step_rows.draws, logits, strict=True):
                if drawn.seq_id >= 0:
                    key = (*self._sequences[drawn.seq_id], drawn.position)
                    self.rows[key] = row.clone()
            return draw(runner, step_rows, logits, outputs)

        monkeypatch.setattr(ModelRunner, "_apply_changes", note_new)
        monkeypatch.setattr(ModelRunner, "_draw", note_logits)


def make_requests(engines, rng, count=7, shared_prefix=0, output_tokens=(1, 25)):
    prefix = [rng.randrange(VOCAB) for _ in range(shared_prefix)]
    return [
        engines.request(
            str(i),
            prefix + [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 80))],
            max_tokens=rng.randrange(*output_tokens),
            ignore_eos=True,
            temperature=rng.choice([0.0, 0.8]),
            seed=rng.randrange(1 << 63),
        )
        for i in range(count)
    ]


def logits_of(log, run):
    log.rows = {}
    run()
    return log.rows


def alone(engines, folder, requests, **knobs):
    engine = engines.make(folder, enable_prefix_caching=False, max_num_batched_tokens=512, **knobs)
    for request in requests:
        engines.run(engine, [request])


def check_same_bits(log, run, expected):
    """The logits of a run are these, bit for bit."""
    assert number_of_changes(logits_of(log, run), expected) == 0


def number_of_changes(found, expected):
    assert found.keys() == expected.keys()
    return sum(not torch.equal(found[key], expected[key]) for key in expected)


def cramped(folder):
    """Knobs of a pool that any two long texts outgrow after they have begun together."""
    num_groups = len(load_model_config(Checkpoint("folder", folder, "m")).layer_groups)
    num_blocks = 14 + 7 * (num_groups - 1)
    return {"num_kv_blocks": num_blocks, "max_model_len": 14 * 16, "max_num_batched_tokens": 64}


ATTENDING = (
    *("tiny_llama", "tiny_gemma3", "tiny_gemma4", "tiny_olmo2"),
    *("tiny_qwen3_moe", "tiny_qwen3_next", "tiny_lfm2_moe"),
    "tiny_deepseek",
)
"""A model of each kind with keys and values that must give the same bits in any company."""
SIZES = {"seed": 5, "head_dim": 64, "hidden_size": 96, "intermediate_size": 136}
"""Heads of 64 as in real models, sizes that no tile divides evenly."""
