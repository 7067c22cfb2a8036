"""Translates GBNF for llguidance, so that the same texts are allowed.

GBNF matches characters; llguidance matches lexemes, each as long as possible. Translating rule by
rule would therefore allow fewer texts: `w "ing"` with `w ::= [a-z]*` would match nothing, because w
consumes the end. A grammar whose rules are not recursive becomes one regular expression. In other
grammars each character is a lexeme. Single characters cost time, so a stretch, such as a string of
JSON, becomes one lexeme where that changes nothing: where everything else in the grammar begins
differently, and no text of the stretch is the beginning of another. Named tokens stand between
lexemes, so a grammar with named tokens is never one expression. If a token may follow both by its
name and by its characters, only its name is used.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from contextlib import suppress
from dataclasses import replace
from itertools import chain, combinations, groupby

from engine.llm.structure.gbnf import (
    LAST_CHARACTER,
    Characters,
    Choice,
    Node,
    Repeated,
    Rule,
    Sequence,
    Stretch,
    Token,
    leaves_of,
    read_gbnf,
)
from engine.llm.structure.token_names import TokenNames

MAX_EXPRESSION_CHARS = 200_000
"""The longest regular expression that replaces a grammar. A rule that is used twice occurs in it
twice."""


def lark_of_gbnf(text: str, tokens: TokenNames) -> str:
    """Translate a grammar to the same language for llguidance.

    Args:
        tokens: the names of the model's tokens.

    Raises:
        ValueError: the text is not valid GBNF, and the error says what is wrong in which line; or
            it names an unknown token.
        RecursionError: the text is nested too deeply.
    """
    rules = read_gbnf(text)
    expression = _one_expression(rules)
    if expression is not None:
        return f"start: /{expression}/"
    if any(isinstance(one, Token) for node in rules.values() for one in leaves_of(node)):
        rules = {**rules, "root": _between_tokens(rules)}
    for _ in range(2):  # A second pass finds more, as fewer lexemes are in the way.
        rules = _with_stretches(rules)
    names = {name: f"r{number}" for number, name in enumerate(rules)}
    bodies = [f"{names[name]}: {_lark(node, names, tokens)}" for name, node in rules.items()]
    return "\n".join([f"start: {names['root']}", *bodies, ""])


class _NoExpressionError(Exception):
    """A rule refers to itself or names a token, or the expression would be too long."""


def _one_expression(rules: Mapping[str, Node]) -> str | None:
    try:
        return _expressions(rules)("root")
    except _NoExpressionError:
        return None


def _expressions(rules: Mapping[str, Node]) -> Callable[[str], str]:
    """Return a function that gives a rule's expression by its name, or raises if it has none."""
    written: dict[str, str | None] = {}

    def rule(name: str) -> str:
        if name not in written:
            written[name] = None
            written[name] = _expression(rules[name], rule)
        expression = written[name]
        if expression is None:
            raise _NoExpressionError
        return expression

    return rule


def _no_rule(name: str) -> str:
    raise _NoExpressionError


def _expression(node: Node, rule: Callable[[str], str] = _no_rule) -> str:
    match node:
        case Characters():
            return _class(node)
        case Stretch(expression):
            return expression
        case Rule(name):
            return rule(name)
        case Token():
            raise _NoExpressionError
        case Sequence(parts):
            written = "".join(_expression(part, rule) for part in parts)
        case Choice(ways):
            written = "|".join(_expression(way, rule) for way in ways)
        case Repeated(part):
            written = f"{_expression(part, rule)}{_times(node)}"
    if len(written) > MAX_EXPRESSION_CHARS:
        raise _NoExpressionError
    return f"(?:{written})"


def _lark(node: Node, names: Mapping[str, str], tokens: TokenNames) -> str:
    match node:
        case Token(name, is_negated):
            token_id = tokens.id_of(name)
            return f"<[{tokens.all_but(token_id) if is_negated else token_id}]>"
        case Rule(name):
            return names[name]
        case Sequence(parts):
            return f"({' '.join(_lark(part, names, tokens) for part in parts)})" if parts else '""'
        case Choice(ways):
            return f"({' | '.join(_lark(way, names, tokens) for way in ways)})"
        case Repeated(part):
            return f"({_lark(part, names, tokens)}){_times(node)}"
    return f"/{_expression(node)}/"


def _class(node: Characters) -> str:
    if node.ranges == ((0, LAST_CHARACTER),):
        return r"[\s\S]"
    [(first, last), *more] = node.ranges
    if first == last and not more and not node.is_negated:
        return _character(first)
    ranges = "".join(f"{_character(first)}-{_character(last)}" for first, last in node.ranges)
    return f"[{'^' if node.is_negated else ''}{ranges}]"


def _character(code: int) -> str:
    return chr(code) if code < 128 and chr(code).isalnum() else f"\\x{{{code:x}}}"


def _times(node: Repeated) -> str:
    match node.least, node.most:
        case 0, None:
            return "*"
        case 1, None:
            return "+"
        case 0, 1:
            return "?"
    return f"{{{node.least},{'' if node.most is None else node.most}}}"


def _between_tokens(rules: Mapping[str, Node]) -> Node:
    """Rewrite `root`: what stands alone between named tokens, or between one and an end, becomes a
    stretch, since nothing there depends on where a lexeme ends."""
    rule = _expressions(rules)

    def cut(node: Node, within: tuple[str, ...]) -> Node:
        with suppress(_NoExpressionError):
            return stretch(node)
        match node:
            case Rule(name) if name not in within:
                return cut(rules[name], (*within, name))
            case Choice(ways):
                return Choice(tuple(cut(way, within) for way in ways))
            case Sequence(parts):
                runs = groupby(parts, lambda part: _is_tokens(part, rules, within))
                cut_runs = (run if is_tokens else between(*run) for is_tokens, run in runs)
                return Sequence(tuple(chain.from_iterable(cut_runs)))
        return node

    def between(*run: Node) -> Iterable[Node]:
        with suppress(_NoExpressionError):
            return [stretch(Sequence(run))]
        return run

    def stretch(node: Node) -> Stretch:
        return Stretch(_expression(node, rule), Characters(((0, LAST_CHARACTER),)))

    return cut(rules["root"], ("root",))


def _is_tokens(node: Node, rules: Mapping[str, Node], within: tuple[str, ...]) -> bool:
    """Whether a node can only be named tokens."""
    match node:
        case Token():
            return True
        case Rule(name):
            return name not in within and _is_tokens(rules[name], rules, (*within, name))
        case Choice(parts) | Sequence(parts):
            return bool(parts) and all(_is_tokens(part, rules, within) for part in parts)
        case Repeated(part):
            return _is_tokens(part, rules, within)
    return False


def _with_stretches(rules: Mapping[str, Node]) -> dict[str, Node]:
    """Rewrite the rules: parts of sequences that may be one lexeme become stretches."""
    lexemes = Counter(one for node in rules.values() for one in _lexemes(node))

    def rewritten(node: Node) -> Node:
        match node:
            case Sequence(parts):
                return Sequence(tuple(cut(parts)))
            case Choice(ways):
                return Choice(tuple(map(rewritten, ways)))
            case Repeated(part):
                return replace(node, part=rewritten(part))
        return node

    def cut(parts: tuple[Node, ...]) -> Iterator[Node]:
        at = 0
        while at < len(parts):
            end = _definite_end(parts, at)
            if end > at + 1 and is_apart(whole := Sequence(parts[at:end])):
                yield Stretch(_expression(whole), Characters(tuple(_first(whole))))
            elif all(isinstance(part, Characters) for part in parts[at:]):
                yield from parts[at:]  # This tries a long quoted text only once.
                return
            else:
                end = at + 1
                yield rewritten(parts[at])
            at = end

    def is_apart(whole: Node) -> bool:
        others = lexemes - Counter(_lexemes(whole))
        return not any(_meet(_first(whole), _first(other)) for other in others)

    return {name: rewritten(node) for name, node in rules.items()}


def _lexemes(node: Node) -> Iterator[Node]:
    match node:
        case Characters() | Stretch():
            yield node
        case Sequence(parts) | Choice(parts):
            for part in parts:
                yield from _lexemes(part)
        case Repeated(part):
            yield from _lexemes(part)


def _has_definite_end(node: Node) -> bool:
    """Whether the end of a node is definite: it names no rule, none of its texts is empty or the
    beginning of another, and wherever it may continue or end, the next character decides. False
    also if this cannot be shown."""
    match node:
        case Characters() | Stretch():
            return True
        case Choice(ways):
            return all(map(_has_definite_end, ways)) and not any(
                _meet(_first(one), _first(other)) for one, other in combinations(ways, 2)
            )
        case Repeated(part, least, most):
            return least == most and least > 0 and _has_definite_end(part)
        case Sequence(parts):
            return bool(parts) and _definite_end(parts, 0) == len(parts)
    return False


def _definite_end(parts: Seq[Node], begin: int) -> int:
    """Find the longest run of parts from `begin` on that has a definite end, and return where it
    ends; `begin` if there is none."""
    end = begin
    may_go_on: list[tuple[int, int]] = []
    """The characters with which a part that may have ended could also continue."""
    for number in range(begin, len(parts)):
        part = parts[number]
        if _meet(may_go_on, _first(part)):
            break
        if _has_definite_end(part):
            may_go_on, end = [], number + 1
        elif isinstance(part, Repeated) and _has_definite_end(part.part):
            may_go_on = _first(part) + (may_go_on if part.least == 0 else [])
        else:
            break
    return end


def _is_optional(node: Node) -> bool:
    match node:
        case Sequence(parts):
            return all(map(_is_optional, parts))
        case Choice(ways):
            return any(map(_is_optional, ways))
        case Repeated(part, least):
            return least == 0 or _is_optional(part)
    return False


def _first(node: Node) -> list[tuple[int, int]]:
    """Return the ranges of characters that can begin a node's texts; for rules nothing is known."""
    match node:
        case Characters(ranges, is_negated):
            return list(_all_but(ranges) if is_negated else ranges)
        case Stretch(_, first):
            return list(first.ranges)
        case Choice(ways):
            return [one for way in ways for one in _first(way)]
        case Repeated(part):
            return _first(part)
        case Sequence(parts):
            ranges_of_all = []
            for part in parts:
                ranges_of_all += _first(part)
                if not _is_optional(part):
                    break
            return ranges_of_all
    return []


def _all_but(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    begin = 0
    for first, last in sorted(ranges):
        if begin < first:
            yield begin, first - 1
        begin = max(begin, last + 1)
    if begin <= LAST_CHARACTER:
        yield begin, LAST_CHARACTER


def _meet(ones: list[tuple[int, int]], others: list[tuple[int, int]]) -> bool:
    both = sorted([(*one, 0) for one in ones] + [(*other, 1) for other in others])
    ends = [-1, -1]
    for first, last, side in both:
        if first <= ends[1 - side]:
            return True
        ends[side] = max(ends[side], last)
    return False
