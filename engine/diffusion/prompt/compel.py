r"""The prompt syntax of the library compel.

`word+` is 1.1, `word--` 0.9², `(some words)1.3` and `(some words)++` weight a phrase, as do
`"some words"+` and `.attend(1.3)`; nesting multiplies. Brackets and double quotes without a weight
are dropped, unbalanced ones are text, and `\` makes any of `( ) " + - . , =` a character.

A whole prompt may be `("a", "b").and()`, whose parts are encoded separately and joined in order, or
`("a", "b").blend(0.7, 0.3)`, their weighted sum, normalised unless `no_normalize` comes last.

`.swap()`, `withLora()` and weights of `.and()` are refused.
"""

import re
from dataclasses import dataclass, field

from engine.diffusion.prompt.fragments import (
    Blend,
    Break,
    Fragment,
    Piece,
    check_nesting,
    join_words,
)
from engine.errors import InvalidParameter

_PLUS = 1.1
_MINUS = 0.9
_NUMBER = r"(?:\d+\.\d*|\.?\d+)"
_SIGNS = r"\++|-+"
_WORD = r"(?:\\.|[^\s()\",.=+\-\\]|[+\-](?=[^\s()\",.=+\-]))+"
_ATTEND = rf"\.attend\(\s*(?P<attend>{_SIGNS}|{_NUMBER})\s*\)"

_TOKEN = re.compile(
    rf"(?P<weighted>{_WORD})(?:(?P<signs>{_SIGNS})(?=[\s()\",.=]|$)|{_ATTEND})"
    rf"|(?P<word>{_WORD})|[()\"]|\s+|.",
    re.DOTALL,
)
_GROUP_SUFFIX = re.compile(rf"(?P<weight>{_SIGNS}|{_NUMBER})|{_ATTEND}")
_ESCAPE = re.compile(r"\\([()\"+\-.,=])")
_COMBINED = re.compile(
    r"\s*\((?P<parts>.*)\)\s*\.(?P<how>and|add|blend)\((?P<options>[^()]*)\)\s*\Z", re.DOTALL
)
_QUOTED = re.compile(r'\s*"((?:\\.|[^"\\])*)"\s*\Z', re.DOTALL)
_UNSUPPORTED = re.compile(r"(?<!\\)\.(?:swap|and|add|blend)\(|\b(?:with|use)Lora\(")


def parse_compel(text: str) -> list[Piece]:
    """Fragments in order, with neighbours of equal weight merged; or one `Blend`."""
    combined = _COMBINED.match(text)
    if combined is None:
        return [*_parse_part(text)]
    parts = [_parse_part(part) for part in _split_parts(combined["parts"])]
    options = [option.strip() for option in combined["options"].split(",") if option.strip()]
    if combined["how"] == "blend":
        return [_blend(parts, options)]
    if any(_number(option) != 1.0 for option in options):
        raise _unsupported("weights of .and()", "give weights to the phrases in it")
    joined: list[Piece] = []
    for part in parts:
        joined += [Break(), *part] if joined else part
    return joined


def _blend(parts: list[list[Fragment]], options: list[str]) -> Blend:
    normalise = not options or options[-1] != "no_normalize"
    weights = [_number(option) for option in (options if normalise else options[:-1])]
    weights = weights or [1.0] * len(parts)
    if len(weights) != len(parts):
        raise InvalidParameter(
            f".blend() has {len(parts)} prompts and {len(weights)} weights; give one weight per "
            f"prompt",
            param="prompt",
        )
    total = sum(weights) if normalise else 1.0
    if abs(total) < 1e-6:
        raise InvalidParameter(
            "the weights of .blend() sum to zero; change one or add no_normalize", param="prompt"
        )
    return Blend(tuple(map(tuple, parts)), tuple(weight / total for weight in weights))


def _split_parts(text: str) -> list[str]:
    """Split at commas outside quotes and brackets; a part that is one quoted string loses its
    quotes."""
    starts, depth, quoted = [0], 0, False
    for match in re.finditer(r"\\.|[(),\"]", text, re.DOTALL):
        token = match.group()
        quoted ^= token == '"'
        if not quoted:
            depth += (token == "(") - (token == ")")
        if depth < 0:  # the outer brackets are two separate pairs: `(a) b (c).and()`
            raise _partial()
        if token == "," and not quoted and depth == 0:
            starts.append(match.end())
    ends = [start - 1 for start in starts[1:]] + [len(text)]
    parts = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    unquoted = [_QUOTED.match(part) for part in parts]
    return [m[1].replace('\\"', '"') if m else p for m, p in zip(unquoted, parts, strict=True)]


@dataclass(slots=True)
class _Run:
    """Text of one weight. A group is separated from its neighbours; running text grows."""

    texts: list[str]
    weight: float = 1.0
    is_group: bool = False


@dataclass(slots=True)
class _Frame:
    """An open bracket or quote, and its content."""

    opener: str
    runs: list[_Run] = field(default_factory=list)

    def add_text(self, text: str) -> None:
        if self.runs and not self.runs[-1].is_group:
            self.runs[-1].texts.append(text)
        else:
            self.runs.append(_Run([text]))

    def add_group(self, runs: list[_Run], factor: float) -> None:
        for run in runs:
            run.weight *= factor
            run.is_group = True
        self.runs += runs


def _parse_part(text: str) -> list[Fragment]:
    if _UNSUPPORTED.search(text):
        raise _partial()
    frames = [_Frame("")]
    position = 0
    while match := _TOKEN.match(text, position):
        position = match.end()
        token = match.group()
        if match["weighted"]:
            word = _Run([_unescape(match["weighted"])])
            frames[-1].add_group([word], _weight(match["signs"] or match["attend"]))
        elif token == "(" or (token == '"' and all(frame.opener != '"' for frame in frames)):
            frames.append(_Frame(token))
            check_nesting(len(frames))
        elif token in (")", '"'):
            position = _close(frames, token, text, position)
        else:
            frames[-1].add_text(_unescape(token))
    while len(frames) > 1:
        _flatten_last(frames)
    return _merge(frames[0].runs)


def _close(frames: list[_Frame], token: str, text: str, position: int) -> int:
    """Close the newest bracket or quote that fits; those opened since become text. Returns the new
    position."""
    opener = "(" if token == ")" else token
    if all(frame.opener != opener for frame in frames):
        frames[-1].add_text(token)
        return position
    while frames[-1].opener != opener:
        _flatten_last(frames)
    inner = frames.pop()
    suffix = _GROUP_SUFFIX.match(text, position)
    factor = _weight(suffix["weight"] or suffix["attend"]) if suffix else 1.0
    frames[-1].add_group(inner.runs, factor)
    return suffix.end() if suffix else position


def _flatten_last(frames: list[_Frame]) -> None:
    inner = frames.pop()
    frames[-1].add_text(inner.opener)
    for run in inner.runs:
        if run.is_group:
            frames[-1].runs.append(run)
        else:
            for text in run.texts:
                frames[-1].add_text(text)


def _merge(runs: list[_Run]) -> list[Fragment]:
    """Join neighbours of equal weight; groups separate words, so `(ba)dly` is two."""
    merged: list[tuple[float, list[str]]] = []
    for run in runs:
        text = "".join(run.texts)
        if merged and (run.weight == merged[-1][0] or not text.strip()):
            merged[-1][1].append(text)
        elif text:
            merged.append((run.weight, [text]))
    return [Fragment(join_words(texts), weight) for weight, texts in merged]


def _weight(written: str) -> float:
    if written[0] in "+-":
        return float((_PLUS if written[0] == "+" else _MINUS) ** min(len(written), 1000))
    return float(written)


def _number(written: str) -> float:
    try:
        return float(written)
    except ValueError:
        raise InvalidParameter(
            "the weights of .and() and .blend() must be numbers; "
            "only .blend() may also have no_normalize, at the end",
            param="prompt",
        ) from None


def _unescape(text: str) -> str:
    return _ESCAPE.sub(r"\1", text)


def _partial() -> InvalidParameter:
    return _unsupported(
        ".swap(), withLora() and .and() or .blend() inside a prompt",
        "write .and() and .blend() around the whole prompt",
    )


def _unsupported(what: str, instead: str) -> InvalidParameter:
    return InvalidParameter(
        f"prompt_syntax compel: {what} is not supported; {instead}, or use prompt_syntax plain",
        param="prompt",
    )
