"""Counts a checkpoint's weights."""

import math

from engine.weights.loader import load_model_config, weight_headers
from engine.weights.source import Checkpoint


def num_weights(checkpoint: Checkpoint) -> int:
    """Count the numbers in all tensors, by their headers."""
    headers = weight_headers(checkpoint, load_model_config(checkpoint))
    return sum(math.prod(header.shape) for header in headers.values())
