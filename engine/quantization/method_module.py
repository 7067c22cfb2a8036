"""A module of torch around a format's product, for models that consist of `nn.Linear`."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class MethodModule(nn.Module):
    """A replacement of `torch.nn.Linear` whose `product` takes its state first: [T, in] → [T,
    out]."""

    def __init__(
        self,
        product: Callable[[Any, Tensor], Tensor],
        state: Any,
        in_features: int,
        out_features: int,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.state = state
        self._product = product

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        rows = self._product(self.state, x.reshape(-1, self.in_features))
        return rows.view(*x.shape[:-1], self.out_features)
