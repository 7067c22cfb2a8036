"""Estimates the memory of a step's activations from a decoder's sizes. A GPU measures it
instead."""

from engine.contract.text_settings import TextSettings
from engine.models.config import ModelConfig
from engine.models.experts_config import ExpertsConfig
from engine.runtime.device import torch_dtype

LOGITS_BYTES = 4
_LOGITS_COPIES = 2
"""The copies of logits: the logits themselves and those from which tokens are drawn."""
_MOST_SCORED_ROWS = 128
"""The most prompt rows whose logits exist at one time."""
_STREAMS = 3
"""The number of tensors as wide as a hidden state that exist besides a layer's own."""


def step_bytes(config: ModelConfig, intent: TextSettings) -> int:
    """The activations of the largest step."""
    rows = intent.max_num_batched_tokens
    drawing_rows = min(intent.max_num_seqs, rows)
    queries = config.num_attention_heads
    heads = (
        # Queries for keys that are the values, too, are made by a product of their own.
        (2 if kv.parts == 2 else 3) * queries * kv.head_dim + kv.size
        for kv in config.layer_kv_shapes
    )
    widest = max(*heads, 3 * config.intermediate_size)
    if isinstance(config, ExpertsConfig):
        # Each row exists once for each of its experts.
        answers = config.experts_per_token * (config.hidden_size + 3 * config.expert_size)
        widest = max(widest, answers)
    row = _STREAMS * config.hidden_size + widest + config.numbers_beside_layers
    layer = rows * row * torch_dtype(intent.model_dtype).itemsize
    logits = max(drawing_rows, min(rows, _MOST_SCORED_ROWS))
    return layer + _LOGITS_COPIES * logits * config.vocab_size * LOGITS_BYTES
