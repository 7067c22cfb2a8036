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

    @property
    def experts(self) -> tuple[int, int]:
        return self.num_experts, self.experts_per_token


def expert_row_counts(config: ModelConfig) -> tuple[int, ...]:
    """Numbers of a step's rows from which a GPU cuts products over experts in another way
    (`kernels/experts/triton_linear.py`): by all pairs of a row and an expert, and by those that an
    expert has on average."""
    if config.experts is None:
        return ()
    number, per_token = config.experts
    return tuple(sorted({pairs // per_token + 1 for pairs in (64, 16 * number, 64 * number)}))


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
