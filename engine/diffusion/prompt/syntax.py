"""Reads a prompt in one of the syntaxes that a request may choose.

Each syntax has its rules in its own module; `plain` has none. Weights are only numbers here:
`emphasis` applies them to the encoder's states.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from engine.contract.draw import PromptSyntax
from engine.diffusion.prompt.a1111 import parse_a1111
from engine.diffusion.prompt.comfy import parse_comfy
from engine.diffusion.prompt.compel import parse_compel
from engine.diffusion.prompt.fragments import (
    Blend,
    Break,
    Fragment,
    Piece,
    check_weight,
    join_words,
)

__all__ = ["Blend", "Break", "Fragment", "Piece", "parse_prompt", "plain_text"]


def parse_prompt(text: str, syntax: PromptSyntax) -> list[Piece]:
    """The prompt's fragments and breaks in order, at least one; or a single `Blend`.

    Unbalanced brackets and other irregular input are text, as in each syntax. Lone surrogates,
    which JSON can contain and UTF-8 cannot, become U+FFFD.

    Raises:
        InvalidParameter: the prompt has a construct that is not supported here, a weight beyond
            `MAX_WEIGHT`, or more than `MAX_NESTING` open brackets.
    """
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    pieces = list(_PARSERS[syntax](text)) or [Fragment("")]
    for piece in pieces:
        for weight in _weights(piece):
            check_weight(weight)
    return pieces


def plain_text(pieces: Sequence[Fragment | Break]) -> str:
    """The text without weights, for encoders that cannot use them."""
    return join_words(piece.text if isinstance(piece, Fragment) else " " for piece in pieces)


def _weights(piece: Piece) -> Iterator[float]:
    if isinstance(piece, Fragment):
        yield piece.weight
    elif isinstance(piece, Blend):
        yield from piece.weights
        yield from (fragment.weight for part in piece.parts for fragment in part)


def _parse_plain(text: str) -> list[Fragment]:
    return [Fragment(text)]


_PARSERS: Mapping[PromptSyntax, Callable[[str], Sequence[Piece]]] = {
    PromptSyntax.PLAIN: _parse_plain,
    PromptSyntax.A1111: parse_a1111,
    PromptSyntax.COMFY: parse_comfy,
    PromptSyntax.COMPEL: parse_compel,
}
