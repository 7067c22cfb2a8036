"""Reads GBNF, the language of llama.cpp's grammars, into rules.

https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md describes the language.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

LAST_CHARACTER = 0x10FFFF
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_TIMES_OF_SIGNS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_TOKEN = re.compile(r"(!?)(<\[[0-9]{1,9}\]>|<[^>\r\n]{1,100}>)")
_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_TIMES = re.compile(r"\{\s*([0-9]{1,9})\s*(,?)\s*([0-9]{0,9})\s*\}")


@dataclass(frozen=True, slots=True)
class Characters:
    """One character in these ranges, or outside them."""

    ranges: tuple[tuple[int, int], ...]
    """The first and last character of each range."""
    is_negated: bool = False


@dataclass(frozen=True, slots=True)
class Token:
    """One token or, if negated, any other one. The token's text does not matter.

    Attributes:
        name: the name as written: `<[1000]>`, or the token's text, such as `<think>`.
    """

    name: str
    is_negated: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """A reference to the rule of that name."""

    name: str


@dataclass(frozen=True, slots=True)
class Sequence:
    """Parts one after the other; without parts, the empty text."""

    parts: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Choice:
    """A choice of one of several ways."""

    ways: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Repeated:
    """A part repeated several times in a row.

    Attributes:
        most: the most repetitions; None for any number.
    """

    part: "Node"
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Stretch:
    """A regular expression that replaces a node without rule names (`gbnf_lark.py`). It is made,
    never read.

    Attributes:
        first: the characters with which it can begin.
    """

    expression: str
    first: Characters


Node = Characters | Token | Rule | Sequence | Choice | Repeated | Stretch


def read_gbnf(text: str) -> dict[str, Node]:
    """Read the rules, by name. All named rules exist, and so does `root`, where every text begins.

    Raises:
        ValueError: the text is not valid GBNF; the error says what is wrong in which line.
        RecursionError: the text is nested too deeply.
    """
    rules = _Parser(text).rules()
    for leaf in {one for node in rules.values() for one in leaves_of(node)}:
        if isinstance(leaf, Rule) and leaf.name not in rules:
            raise ValueError(f"the rule {leaf.name} is used, but not defined")
    if "root" not in rules:
        raise ValueError("the rule root is missing; every text begins with it")
    return rules


def leaves_of(node: Node) -> Iterator[Node]:
    """Yield a node's leaves, each as often as it occurs; rules are not followed."""
    left = [node]
    while left:
        match left.pop():
            case Sequence(parts) | Choice(parts):
                left += parts
            case Repeated(part):
                left.append(part)
            case leaf:
                yield leaf


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def rules(self) -> dict[str, Node]:
        """Read the rules, by name. If several have one name, the last counts, as in llama.cpp."""
        rules = {}
        self._skip(_SPACE_AND_LINES)
        while self._at < len(self._text):
            name = self._name()
            self._skip(_SPACE)
            if not self._text.startswith("::=", self._at):
                raise self._error("::= is missing")
            self._at += 3
            self._skip(_SPACE_AND_LINES)
            rules[name] = self._choice(_SPACE)
            if self._at < len(self._text) and self._here not in "\r\n":
                raise self._error(f"unexpected {self._here!r}")
            self._skip(_SPACE_AND_LINES)
        return rules

    def _choice(self, space: re.Pattern[str]) -> Node:
        ways = [self._sequence(space)]
        while self._goes_on():
            self._at += 1
            self._skip(_SPACE_AND_LINES)
            ways.append(self._sequence(space))
        return ways[0] if len(ways) == 1 else Choice(tuple(ways))

    def _goes_on(self) -> bool:
        """Skip to the next way of a choice, which may stand on a line of its own. Returns whether
        there is one."""
        found = _SPACE_AND_LINES.match(self._text, self._at)
        if found is not None and self._text.startswith("|", found.end()):
            self._at = found.end()
            return True
        return False

    def _sequence(self, space: re.Pattern[str]) -> Node:
        parts: list[Node] = []
        while self._at < len(self._text) and self._here not in "|)\r\n":
            parts.append(self._part())
            self._skip(space)
            while self._here and self._here in "*+?{":
                parts[-1] = Repeated(parts[-1], *self._times())
                self._skip(space)
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _part(self) -> Node:
        match self._here:
            case '"':
                self._at += 1
                literal = tuple(Characters(((ord(one),) * 2,)) for one in self._characters('"'))
                return literal[0] if len(literal) == 1 else Sequence(literal)
            case "[":
                return self._class()
            case "(":
                self._at += 1
                self._skip(_SPACE_AND_LINES)
                group = self._choice(_SPACE_AND_LINES)
                if not self._text.startswith(")", self._at):
                    raise self._error(") is missing")
                self._at += 1
                return group
            case ".":
                self._at += 1
                return Characters(((0, LAST_CHARACTER),))
            case "<" | "!":
                return self._token()
        return Rule(self._name())

    def _token(self) -> Node:
        found = _TOKEN.match(self._text, self._at)
        if found is None:
            raise self._error("a token must be written as <[1000]>, or as its text between < and >")
        self._at = found.end()
        return Token(found[2], is_negated=bool(found[1]))

    def _class(self) -> Node:
        self._at += 1
        is_negated = self._here == "^"
        self._at += is_negated
        ranges = []
        while self._here != "]":
            first = last = self._character()
            if self._here == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                last = self._character()
            if last < first:
                raise self._error("the last character of a range comes before its first")
            ranges.append((ord(first), ord(last)))
        self._at += 1
        if not ranges:
            raise self._error("a character class is empty")
        return Characters(tuple(ranges), is_negated)

    def _characters(self, end: str) -> Iterator[str]:
        while self._here != end:
            yield self._character()
        self._at += 1

    def _character(self) -> str:
        one = self._here
        if not one:
            raise self._error("a closing quote or bracket is missing")
        self._at += 1
        if one != "\\":
            return one
        kind = self._here
        self._at += 1
        if kind in _HEX_DIGITS:
            digits = self._text[self._at : self._at + _HEX_DIGITS[kind]]
            if re.fullmatch("[0-9A-Fa-f]+", digits) and len(digits) == _HEX_DIGITS[kind]:
                self._at += len(digits)
                number = int(digits, 16)
                if number <= 0x10FFFF and not 0xD800 <= number < 0xE000:
                    return chr(number)
        elif kind and kind in _ESCAPES:
            return _ESCAPES[kind]
        raise self._error(f"\\{kind} is not a valid escape")

    def _times(self) -> tuple[int, int | None]:
        if self._here != "{":
            self._at += 1
            return _TIMES_OF_SIGNS[self._text[self._at - 1]]
        found = _TIMES.match(self._text, self._at)
        if found is None:
            raise self._error("{ must be followed by one or two numbers and }")
        self._at = found.end()
        least, comma, most = found.groups()
        if most and (not comma or int(most) < int(least)):
            raise self._error(f"{found[0]} is not a valid number of repetitions")
        return int(least), int(most or least) if most or not comma else None

    def _name(self) -> str:
        found = _NAME.match(self._text, self._at)
        if found is None:
            raise self._error(f"unexpected {self._here!r}")
        self._at = found.end()
        return found[0]

    @property
    def _here(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip(self, space: re.Pattern[str]) -> None:
        found = space.match(self._text, self._at)
        self._at = found.end() if found is not None else self._at

    def _error(self, what: str) -> ValueError:
        return ValueError(f"{what} in line {self._text.count(chr(10), 0, self._at) + 1}")
