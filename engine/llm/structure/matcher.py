"""Compiles a structure into llguidance's matcher within limits, or says why it cannot be."""

import re

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from engine.contract.structure import Structure, StructureKind
from engine.errors import InvalidParameter

LIMITS = LLParserLimits(
    initial_lexer_fuel=500_000,
    step_lexer_fuel=100_000,
    step_max_items=10_000,
    max_items_in_row=1_000,
    max_lexer_states=25_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
"""The limits of making a grammar and a mask of it. A request that exceeds them ends with an error;
docs/decisions/014-structured-output.md explains them."""

_ONE_OF = (
    "more than one branch of a oneOf can match; use anyOf, or give each branch a required property "
    "with a different string as its const"
)
"""Replaces the library's message, which names an option that clients do not have."""
_NO_TEXT = "no text fits it: it refers to itself without end, or it is too large"
"""Replaces the library's `NoExtensionBias`."""
_TOO_MANY = re.compile(r"Current row has \d+ items|Too many items")
_TOO_MANY_WAYS = (
    "there are too many ways to continue at one place, as with enum values that begin alike, "
    "hundreds of optional properties, or ambiguous rules"
)
"""Replaces the library's advice, which fits only grammars."""


def matcher_of(structure: Structure, text: str, tokens: LLTokenizer) -> LLMatcher:
    """Compile a structure's grammar.

    Args:
        text: the text of the grammar.

    Raises:
        InvalidParameter: the structure cannot be honoured.
    """
    matcher = LLMatcher(tokens, text, log_level=0, limits=LIMITS)
    if matcher.is_error():
        raise refusal(structure, matcher.get_error())
    return matcher


def refusal(structure: Structure, reason: str) -> InvalidParameter:
    """Make the error for a structure that cannot be honoured."""
    lines = reason.replace("<non-verbose/>", "").split("\n")
    if structure.kind is StructureKind.TAGS:
        # The following lines are the grammar, which the client did not write.
        lines = [re.sub(r"^at \d+\(\d+\): ", "", lines[0])]
    said = " ".join(line.strip() for line in lines if line.strip())[:400]
    if "coerce_one_of" in said:
        said = _ONE_OF
    elif "NoExtensionBias" in said:
        said = _NO_TEXT
    elif _TOO_MANY.search(said):
        said = _TOO_MANY_WAYS
    return InvalidParameter(
        f"{structure.param} cannot be enforced: {said}; change it, or leave it out",
        param=structure.param,
    )
