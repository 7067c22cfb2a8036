"""What a mixture's tokens take of its experts."""

from dataclasses import dataclass

from engine.models.config import ModelConfig
from engine.quantization.plan import num_bytes
from engine.weights.weight_plan import WeightPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """A model without experts has one for all tokens, of no weights."""

    num_experts: int
    """Of a layer."""
    per_token: int
    parameters: int
    """All numbers of the model's weights."""
    expert_parameters: int
    """Those of experts among them."""

    @classmethod
    def of(cls, kept: WeightPlan, config: ModelConfig) -> "Mixture":
        """From a checkpoint's headers."""
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
        """Those that each token meets, its embedding's included."""
        unused = self.expert_parameters * (self.num_experts - self.per_token)
        return self.parameters - unused // self.num_experts

    def expected_experts(self, tokens: int) -> float:
        """Different experts of a layer that so many tokens choose, where a router likes all of them
        equally well; one that prefers some needs fewer."""
        return self.num_experts * (1 - (1 - self.per_token / self.num_experts) ** tokens)


def expert_bytes(kept: WeightPlan, dtype_bytes: int) -> int:
    """What all experts take in memory as they are kept."""
    shapes = {name: shape for name, shape in kept.shapes.items() if _is_experts(name)}
    layers = {name: layer for name, layer in kept.layers.items() if _is_experts(name)}
    return num_bytes(shapes, layers, dtype_bytes)


def _is_experts(name: str) -> bool:
    return ".experts." in name
