"""Encoded prompts."""

from collections.abc import Hashable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptStates:
    """The denoiser's input from one prompt.

    Attributes:
        key: equal for equal states; a key of the cross-attention cache.
        states: the text encoder's states, `[1, L, D]`.
        pooled: the pooled state `[1, P]`, in families that have one.
        num_tokens: the number of the prompt's own tokens, without begin, end and padding.
        warnings: sentences for the client about parts of the prompt that have no effect.
    """

    key: Hashable
    states: torch.Tensor
    pooled: torch.Tensor | None = None
    num_tokens: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class PromptCourse:
    """The denoiser's input from a prompt over a whole drawing: states for each step that is run, or
    one for all."""

    steps: tuple[PromptStates, ...]

    def at(self, step: int, num_steps: int) -> PromptStates:
        """The states for a call of the denoiser, counted from 0; samplers may need several per
        step."""
        return self.steps[step * len(self.steps) // num_steps]

    @property
    def num_tokens(self) -> int:
        """The number of tokens of the longest text."""
        return max(states.num_tokens for states in self.steps)

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings of all texts, each once."""
        return tuple(dict.fromkeys(said for states in self.steps for said in states.warnings))
