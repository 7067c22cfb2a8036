"""A cache of encoded prompts, keyed with everything that changes them."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from engine.diffusion.families.family import Family
from engine.diffusion.prompt.states import PromptStates
from engine.diffusion.prompt.text import PromptText

CAPACITY = 64
"""The number of prompts kept. A 77-token prompt takes 0.2 MB (SD 1) to 5 MB (FLUX with T5)."""
MOST_NUMBERS = CAPACITY * 512 * 4096
"""The most numbers in their states: those of 64 prompts of FLUX.1. States that include images or
several layers are larger."""


@dataclass(slots=True)
class Lookups:
    """How often a cache was asked, and how often it had the answer."""

    num_queries: int = 0
    num_hits: int = 0


class PromptCache:
    """A least-recently-used cache of one model's prompts; keys do not include the model."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._states: OrderedDict[PromptText, PromptStates] = OrderedDict()
        self.lookups = Lookups()

    def encode(self, prompts: Sequence[PromptText]) -> list[PromptStates]:
        """The states of each prompt, in order; missing ones are encoded together."""
        self.lookups.num_queries += len(prompts)
        self.lookups.num_hits += sum(prompt in self._states for prompt in prompts)
        missing = list(dict.fromkeys(p for p in prompts if p not in self._states))
        found = {prompt: self._states[prompt] for prompt in prompts if prompt in self._states}
        if missing:
            found.update(zip(missing, self._family.encode_prompts(missing), strict=True))
        for prompt in prompts:
            self._states[prompt] = found[prompt]
            self._states.move_to_end(prompt)
        while len(self._states) > CAPACITY or self._num_numbers() > MOST_NUMBERS:
            self._states.popitem(last=False)
        return [found[prompt] for prompt in prompts]

    def _num_numbers(self) -> int:
        return sum(states.states.numel() for states in self._states.values())
