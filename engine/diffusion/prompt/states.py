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


@dataclass(frozen=True, slots=True, eq=False)
class PromptCourse:
    """What the denoiser is told in the course of a drawing: states for each step that is run, or
    the same for all."""

    steps: tuple[PromptStates, ...]

    def at(self, step: int, num_steps: int) -> PromptStates:
        """Those for a call of the denoiser, counted from 0; samplers may need several a step."""
        return self.steps[step * len(self.steps) // num_steps]

    @property
    def num_tokens(self) -> int:
        """Of the longest text."""
        return max(states.num_tokens for states in self.steps)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of all texts, each once."""
        return tuple(dict.fromkeys(said for states in self.steps for said in states.warnings))
