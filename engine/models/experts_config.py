"""What families with experts must know beside the others."""

from dataclasses import dataclass
from typing import Any

from engine.models.config import ModelConfig
from engine.models.gguf_keys import GgufKeys

MAX_EXPERTS = 4096
"""Of a layer; published models have up to 512."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsConfig(ModelConfig):
    """`intermediate_size` is that of layers without experts."""

    num_experts: int
    experts_per_token: int
    expert_size: int
    """Inner size of an expert."""
    normalised: bool
    """The chosen experts' weights are scaled to the sum of 1."""
    plain_layers: frozenset[int] = frozenset()
    """Those without experts."""


def gguf_expert_fields(keys: GgufKeys, expert_size: int) -> dict[str, Any]:
    """Fields of `ExpertsConfig`.

    Args:
        expert_size: what a missing key means.
    """
    num_experts = keys.integer(keys.own("expert_count"), high=MAX_EXPERTS)
    return {
        "num_experts": num_experts,
        "experts_per_token": keys.integer(keys.own("expert_used_count"), high=num_experts),
        "expert_size": keys.integer(keys.own("expert_feed_forward_length"), expert_size),
    }
