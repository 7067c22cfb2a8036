"""A prompt as the input of an encoder."""

from dataclasses import dataclass

from engine.contract.draw import LoraUse, PromptSyntax


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptText:
    """A prompt with its syntax. It is hashable, as the key of the cache of prompt states."""

    text: str
    syntax: PromptSyntax = PromptSyntax.PLAIN
    clip_skip: int = 0
    adapters: tuple[LoraUse, ...] = ()
    """The adapters that change a text encoder, by their keys."""
