"""A prompt as the input of an encoder."""

from dataclasses import dataclass, field

from engine.contract.draw import LoraUse, PromptSyntax


@dataclass(frozen=True, slots=True)
class PromptImage:
    """An RGB image that a text encoder sees beside a prompt."""

    width: int
    height: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptText:
    """A prompt with its syntax. It is hashable, as the key of the cache of prompt states."""

    text: str
    syntax: PromptSyntax = PromptSyntax.PLAIN
    clip_skip: int = 0
    adapters: tuple[LoraUse, ...] = ()
    """The adapters that change a text encoder, by their keys."""
    images: tuple[PromptImage, ...] = field(default=(), repr=False)
