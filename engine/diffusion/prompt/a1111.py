r"""The prompt syntax of AUTOMATIC1111's web UI.

`(x)` multiplies the weight by 1.1, `[x]` divides it by 1.1, and `(x:1.3)` multiplies it by 1.3;
nesting multiplies, open brackets extend to the end, `\( \) \[ \] \\` are the characters themselves
(a backslash before anything else is dropped), and `BREAK` ends a chunk, also inside brackets.
`[a:b:0.4]` and `[a|b]`, which change from step to step, are read earlier, in `course`.

Composition with `AND` and the rest of `<lora:name:1>`, which the server removes from prompts, are
refused, because they would be silently wrong as plain text.
"""

import re

from engine.diffusion.prompt.fragments import Break, Fragment, check_nesting, merge_equal
from engine.errors import InvalidParameter

_ROUND = 1.1
_SQUARE = 1 / 1.1
_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"

_TOKEN = re.compile(
    rf"""
    \\(?P<literal>[()\[\]\\]?)
    | :\s*(?P<weight>{_NUMBER})\s*\)
    | [()\[\]:]
    | [^\\()\[\]:]+
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"\bBREAK\b")
_AND = re.compile(r"\bAND\b")
_NETWORK = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>", re.IGNORECASE)


def parse_a1111(text: str) -> list[Fragment | Break]:
    """Fragments and breaks in order; neighbours of equal weight are merged."""
    _refuse_unsupported(text)
    reader = _Reader()
    for match in _TOKEN.finditer(text):
        reader.read(match)
    return merge_equal(reader.finish())


class _Reader:
    """The fragments so far, and the beginnings of open brackets."""

    def __init__(self) -> None:
        self._texts: list[str | None] = []  # None is a break
        self._weights: list[float] = []
        self._open: list[tuple[str, int]] = []

    def read(self, match: re.Match[str]) -> None:
        token = match.group()
        if token.startswith("\\"):
            self._add(match["literal"])
        elif token in ("(", "["):
            self._open.append((token, len(self._texts)))
            check_nesting(len(self._open))
        elif match["weight"] and self._is_open("("):
            self._close("(", float(match["weight"]))
        elif token == ")" and self._is_open("("):
            self._close("(", _ROUND)
        elif token == "]" and self._is_open("["):
            self._close("[", _SQUARE)
        else:
            self._add_text(token)

    def finish(self) -> list[Fragment | Break]:
        for bracket, factor in (("(", _ROUND), ("[", _SQUARE)):
            for start in [start for kind, start in self._open if kind == bracket]:
                self._multiply(start, factor)
        return [
            Break() if text is None else Fragment(text, weight)
            for text, weight in zip(self._texts, self._weights, strict=True)
        ]

    def _is_open(self, bracket: str) -> bool:
        return any(kind == bracket for kind, _ in self._open)

    def _close(self, bracket: str, factor: float) -> None:
        """Close a bracket. The two kinds are paired independently: `(a [b) c]` is legal."""
        at = max(i for i, (kind, _) in enumerate(self._open) if kind == bracket)
        self._multiply(self._open.pop(at)[1], factor)

    def _multiply(self, start: int, factor: float) -> None:
        for i in range(start, len(self._weights)):
            self._weights[i] *= factor

    def _add_text(self, text: str) -> None:
        parts = _BREAK.split(text)
        for i, part in enumerate(parts):
            if i:
                self._add(None)
                part = part.lstrip()
            self._add(part.rstrip() if i < len(parts) - 1 else part)

    def _add(self, text: str | None) -> None:
        self._texts.append(text)
        self._weights.append(1.0)


def _refuse_unsupported(text: str) -> None:
    if _AND.search(text):
        raise _unsupported("composition with AND", 'write "and", or BREAK to separate parts')
    if _NETWORK.search(text):
        raise _unsupported("<lora:name:weight>", "name adapters in their own field")


def _unsupported(what: str, instead: str) -> InvalidParameter:
    return InvalidParameter(
        f"prompt_syntax a1111: {what} is not supported; {instead}, or use prompt_syntax plain",
        param="prompt",
    )
