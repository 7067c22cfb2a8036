"""The assignment of rows to experts in a mixture of experts."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Routing:
    """Pairs of a token and one of its experts, sorted by expert and then by token."""

    weights: Tensor
    """[T, k] fp32, the weights of each token's experts, the best first."""
    places: Tensor
    """[T, k] int64, the place of each of these pairs among the sorted ones."""
    rows: Tensor
    """[T·k] int64: the token of each sorted pair."""
    starts: Tensor
    """[E + 1] int64: expert e has the sorted pairs starts[e] ... starts[e + 1] - 1."""

    @classmethod
    def of(cls, choice: Tensor, weights: Tensor, num_experts: int) -> "Routing":
        """Build the routing from each token's experts, [T, k] int64, and their weights."""
        chosen, order = choice.flatten().sort(stable=True)
        places = torch.empty_like(order)
        places[order] = torch.arange(len(order), device=order.device)
        # Unlike `bincount`, a GPU's host does not wait for this.
        numbers = torch.arange(num_experts + 1, device=order.device)
        return cls(
            weights=weights,
            places=places.view(choice.shape),
            rows=order // choice.shape[1],
            starts=torch.searchsorted(chosen, numbers),
        )
