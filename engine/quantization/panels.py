"""Weights in panels, as several formats keep them on a CPU."""

from collections.abc import Mapping
from dataclasses import dataclass

import structlog
import torch
from torch import Tensor

from kernels import GGUFType, Panels, linear_panels
from kernels.measured.product_times import mean_ratio, prefers_plain
from kernels.measured.self_benchmark import product_times

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PanelsState:
    """Weights of few bits, arranged for a CPU."""

    panels: Panels
    bias: Tensor | None
    """The bias in fp32, which the kernel adds to its sums."""
    int8_activations: bool = False
    """Whether activations are rounded to 8-bit integers."""

    @classmethod
    def of(
        cls, panels: Panels, bias: Tensor | None, *, int8_activations: bool = False
    ) -> "PanelsState":
        """Build the state with a bias of any float dtype."""
        return cls(panels, None if bias is None else bias.float(), int8_activations)

    def multiply(self, x: Tensor, *, fp32_out: bool = False) -> Tensor:
        """Multiply [T, in] → [T, out]; see `kernels.linear_panels`."""
        return linear_panels(
            x, self.panels, self.bias, int8_activations=self.int8_activations, fp32_out=fp32_out
        )


def are_panels_slower(num_weights: Mapping[GGUFType, int], dtype: torch.dtype) -> bool:
    """Whether this machine multiplies faster with the same weights in `dtype`; measured unless it
    is known (`kernels.measured.self_benchmark`).

    Args:
        num_weights: numbers of weights by the GGUF type with the same panels.
    """
    ratio = mean_ratio(product_times(num_weights.keys(), dtype), num_weights)
    is_slower = prefers_plain(ratio)
    log.info(
        "timed packed weights against plain ones",
        time_ratio=round(ratio, 2),
        types=[one.name for one in num_weights],
        keeps="plain" if is_slower else "packed",
    )
    return is_slower
