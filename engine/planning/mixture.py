"""The part of a mixture's experts that its tokens use."""

from dataclasses import dataclass

from engine.models.config import ModelConfig
from engine.quantization.plan import num_bytes
from engine.weights.weight_plan import WeightPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """The experts of a model. A model without experts counts as having one, without weights."""

    num_experts: int
    """The number of experts in a layer."""
    per_token: int
    parameters: int
    """The number of all weights of the model."""
    expert_parameters: int
    """The number of weights in experts."""

    @classmethod
    def of(cls, kept: WeightPlan, config: ModelConfig) -> "Mixture":
        """Count a model's experts from a checkpoint's headers."""
        sizes = kept.layer_weights()
        ends = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
        num_experts, per_token = config.experts or (1, 1)
        return cls(
            num_experts=num_experts,
            per_token=per_token,
            parameters=sum(sizes.values()) + ends,
            expert_parameters=sum(sizes[name] for name in sizes if _is_experts(name)),
        )

    @property
    def active_parameters(self) -> int:
        """The number of weights that each token uses, its embedding included."""
        unused = self.expert_parameters * (self.num_experts - self.per_token)
        return self.parameters - unused // self.num_experts

    def expected_experts(self, tokens: int) -> float:
        """The expected number of different experts of a layer that this many tokens choose, if the
        router has no preference; with preferences it is smaller."""
        return self.num_experts * (1 - (1 - self.per_token / self.num_experts) ** tokens)


def expert_bytes(kept: WeightPlan, dtype_bytes: int) -> int:
    """The memory of all experts in their planned format."""
    shapes = {name: shape for name, shape in kept.shapes.items() if _is_experts(name)}
    layers = {name: layer for name, layer in kept.layers.items() if _is_experts(name)}
    return num_bytes(shapes, layers, dtype_bytes)


def _is_experts(name: str) -> bool:
    return ".experts." in name
