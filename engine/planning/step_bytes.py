"""What a step's activations take, from a decoder's sizes. A GPU's are measured when it loads."""

from engine.models.config import ModelConfig
from engine.models.experts_config import ExpertsConfig

LOGITS_BYTES = 4
_LOGITS_COPIES = 2
"""Logits and what is drawn from."""
_MOST_SCORED_ROWS = 128
"""Prompt rows whose logits exist at one time."""
_STREAMS = 3
"""Tensors as wide as a hidden state that exist beside a layer's own."""


def step_bytes(config: ModelConfig, *, rows: int, drawing_rows: int, dtype_bytes: int) -> int:
    """Of the largest step.

    Args:
        rows: tokens of all texts in it.
        drawing_rows: of them those whose next token is drawn.
    """
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    widest = max(heads * config.head_dim, 3 * config.intermediate_size)
    if isinstance(config, ExpertsConfig):
        # Rows are there once for each of their experts.
        answers = config.experts_per_token * (config.hidden_size + 3 * config.expert_size)
        widest = max(widest, answers)
    layer = rows * (_STREAMS * config.hidden_size + widest) * dtype_bytes
    logits = max(drawing_rows, min(rows, _MOST_SCORED_ROWS))
    return layer + _LOGITS_COPIES * logits * config.vocab_size * LOGITS_BYTES
