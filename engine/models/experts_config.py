"""The additional configuration of families with experts."""

from dataclasses import dataclass
from typing import Any

from engine.models.config import ModelConfig
from engine.models.gguf_keys import GgufKeys

MAX_EXPERTS = 4096
"""The most experts of a layer; published models have up to 512."""


@dataclass(frozen=True, kw_only=True)  # without slots, for classes that also derive from another
class ExpertsConfig(ModelConfig):
    """A configuration with experts. `intermediate_size` is that of layers without experts."""

    num_experts: int
    experts_per_token: int
    expert_size: int
    """Inner size of an expert."""
    normalised: bool
    """Whether the chosen experts' weights are scaled to the sum of 1."""
    plain_layers: frozenset[int] = frozenset()
    """The layers without experts."""

    @property
    def experts(self) -> tuple[int, int]:
        return self.num_experts, self.experts_per_token


def expert_row_counts(config: ModelConfig) -> tuple[int, ...]:
    """Row counts of a step at which a GPU changes how it divides products over experts
    (`kernels/experts/triton_linear.py`): by the number of pairs of row and expert, and by the rows
    per expert on average."""
    if config.experts is None:
        return ()
    number, per_token = config.experts
    return tuple(sorted({pairs // per_token + 1 for pairs in (64, 16 * number, 64 * number)}))


def gguf_expert_fields(keys: GgufKeys, expert_size: int) -> dict[str, Any]:
    """Read the fields of `ExpertsConfig`.

    Args:
        expert_size: the value of a missing key.
    """
    num_experts = keys.integer(keys.own("expert_count"), high=MAX_EXPERTS)
    return {
        "num_experts": num_experts,
        "experts_per_token": keys.integer(keys.own("expert_used_count"), high=num_experts),
        "expert_size": keys.integer(keys.own("expert_feed_forward_length"), expert_size),
    }
