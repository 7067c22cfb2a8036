"""A prompt as it goes into an encoder."""

from dataclasses import dataclass

from engine.image_types import LoraUse, PromptSyntax


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptText:
    """One prompt as it is to be read. Hashable: the key of the cache of prompt states."""

    text: str
    syntax: PromptSyntax = PromptSyntax.PLAIN
    clip_skip: int = 0
    adapters: tuple[LoraUse, ...] = ()
    """By their keys, those that change a text encoder."""
