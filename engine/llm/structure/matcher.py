"""llguidance's matcher of a structure: compiled within limits, or the reason why there is none."""

import re

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from engine.errors import InvalidParameter
from engine.structure import Structure, StructureKind

LIMITS = LLParserLimits(
    initial_lexer_fuel=500_000,
    step_lexer_fuel=100_000,
    step_max_items=10_000,
    max_items_in_row=1_000,
    max_lexer_states=25_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
"""What making a grammar, and a mask of it, may take. A request that needs more ends with an error.
docs/decisions/014-structured-output.md has what that comes to."""

_ONE_OF = (
    "more than one branch of a oneOf may hold; use anyOf, or require a property in each branch "
    "whose const is a string of its own"
)
"""Instead of the library's words, which name an option that is not the client's."""
_NO_TEXT = "no text fits it: something in it needs itself without end, or it is too large to follow"
"""Instead of the library's `NoExtensionBias`."""
_TOO_MANY = re.compile(r"Current row has \d+ items|Too many items")
_TOO_MANY_WAYS = (
    "there are too many ways to go on from one place, such as values of an enum that begin alike, "
    "hundreds of optional properties, or rules that are ambiguous"
)
"""Instead of the library's advice, which is for grammars alone."""


def matcher_of(structure: Structure, text: str, tokens: LLTokenizer) -> LLMatcher:
    """Compile a structure's grammar.

    Args:
        text: the grammar's.

    Raises:
        InvalidParameter: the structure cannot be honoured.
    """
    matcher = LLMatcher(tokens, text, log_level=0, limits=LIMITS)
    if matcher.is_error():
        raise refusal(structure, matcher.get_error())
    return matcher


def refusal(structure: Structure, reason: str) -> InvalidParameter:
    """What a client is told of a structure that cannot be honoured."""
    lines = reason.replace("<non-verbose/>", "").split("\n")
    if structure.kind is StructureKind.TAGS:
        # What follows is the grammar, which the client has not written.
        lines = [re.sub(r"^at \d+\(\d+\): ", "", lines[0])]
    said = " ".join(line.strip() for line in lines if line.strip())[:400]
    if "coerce_one_of" in said:
        said = _ONE_OF
    elif "NoExtensionBias" in said:
        said = _NO_TEXT
    elif _TOO_MANY.search(said):
        said = _TOO_MANY_WAYS
    return InvalidParameter(
        f"{structure.param} cannot be honoured: {said}; change it, or leave it out",
        param=structure.param,
    )
