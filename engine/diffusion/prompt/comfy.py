r"""ComfyUI's prompt syntax.

Only round brackets count: `(x)` multiplies the inherited weight by 1.1, `(x:1.3)` *replaces* it by
1.3. `\(` and `\)` are the characters themselves. Unbalanced brackets are text, like everything
else.
"""

import re

from engine.diffusion.prompt.fragments import Fragment, check_nesting

_FACTOR = 1.1
_TOKEN = re.compile(r"\\[()]|[()]|[^\\()]+|\\")


def parse_comfy(text: str) -> list[Fragment]:
    """Fragments in order; a bracket also separates words."""
    return [piece for piece in _weigh(_TOKEN.findall(text), 1.0, 0) if piece.text]


def _weigh(tokens: list[str], weight: float, depth: int) -> list[Fragment]:
    check_nesting(depth)
    fragments: list[Fragment] = []
    for item in _split(tokens):
        if len(item) >= 2 and item[0] == "(" and item[-1] == ")":
            inner, inner_weight = _explicit_weight(item[1:-1])
            fragments += _weigh(
                inner, weight * _FACTOR if inner_weight is None else inner_weight, depth + 1
            )
        else:
            literal = "".join(t[1:] if t in ("\\(", "\\)") else t for t in item)
            fragments.append(Fragment(literal, weight))
    return fragments


def _split(tokens: list[str]) -> list[list[str]]:
    """Text and top-level groups in order; a group keeps its brackets.

    A surplus closing bracket makes the level negative, and what follows is text until it is
    balanced; a surplus opening bracket includes the rest.
    """
    items: list[list[str]] = []
    current: list[str] = []
    level = 0
    for token in tokens:
        if token == "(" and level == 0 and current:
            items.append(current)
            current = []
        current.append(token)
        if token == "(":
            level += 1
        elif token == ")":
            level -= 1
            if level == 0:
                items.append(current)
                current = []
    return [*items, current] if current else items


def _explicit_weight(tokens: list[str]) -> tuple[list[str], float | None]:
    """The content of a group without its `:weight`, and the weight."""
    head, colon, tail = tokens[-1].rpartition(":") if tokens else ("", "", "")
    if not colon or not (head or len(tokens) > 1):
        return tokens, None
    try:
        return [*tokens[:-1], head], float(tail)
    except ValueError:
        return tokens, None
