"""What encoders make of a prompt."""

from collections.abc import Hashable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptStates:
    """What the denoiser is told about one prompt.

    Attributes:
        key: equal for equal states; keys the cross-attention cache.
        states: `[1, L, D]` of the text encoder.
        pooled: `[1, P]` where the family has one.
        num_tokens: of the prompt itself, without begin, end and padding.
        warnings: what of the prompt could not act, in sentences for the client.
    """

    key: Hashable
    states: torch.Tensor
    pooled: torch.Tensor | None = None
    num_tokens: int = 0
    warnings: tuple[str, ...] = ()
