r"""The text of a prompt in each step, in the syntax of AUTOMATIC1111's web UI.

`[a:b:WHEN]` is a, and b after WHEN steps; `[b:WHEN]` is nothing and then b; `[a::WHEN]` is a and
then nothing. A WHEN with a decimal point is a share of the steps. `[a|b|c]` alternates step by
step. These can be nested, also within weights. Other brackets are left to `a1111`.

The source is the grammar and the examples of `get_learned_conditioning_prompt_schedules` in the web
UI's `modules/prompt_parser.py`, whose schedules these are. (Its sampler counts from 0 where they
count from 1, so that there the first words last a step longer.)
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engine.diffusion.prompt.fragments import check_nesting
from engine.errors import InvalidParameter

MAX_TEXTS = 32
"""The most different texts of one prompt; each goes through the text encoders."""
MAX_CHARS = 16_000
"""The most characters of these texts together."""

_TOKEN = re.compile(r"\\.|[\[\]():|]|[^\\\[\]():|]+|\\", re.DOTALL)
_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_WHEN = re.compile(rf"\s*({_NUMBER})\s*")

_Said = Callable[[int], str]
"""Gives the text of a step, counted from 1."""


def course_of(text: str, num_steps: int, done: int | None = None) -> tuple[str, ...]:
    """The text of each step; a single text if it never changes.

    Args:
        num_steps: the number of steps that are run, at least 1.
        done: the steps of an earlier pass, from which the prompt's step numbers count; shares for
            this pass are then those above 1. None: there was no earlier pass.

    Raises:
        InvalidParameter: there are too many different texts or open brackets.
    """
    if "[" not in text:
        return (text,)
    reader = _Reader(num_steps, done)
    for match in _TOKEN.finditer(text):
        reader.read(match.group())
    said, changes = reader.finish()
    if not changes:
        return (said(1),)
    texts: dict[str, str] = {}
    course = []
    for step in range(1, num_steps + 1):
        one = said(step)
        course.append(texts.setdefault(one, one))
        _check(texts)
    return tuple(course) if len(texts) > 1 else (course[0],)


@dataclass(slots=True)
class _Frame:
    """The text since an open bracket, divided into parts at the bracket's marks."""

    bracket: str
    parts: list[list[str | _Said]] = field(default_factory=lambda: [[]])
    marks: list[str] = field(default_factory=list)
    """The marks between parts, `:` or `|`."""
    is_text: bool = False
    """Whether something in it is unpaired, so that the bracket is only text."""

    def spelled(self) -> list[str | _Said]:
        """The text as it was written."""
        spelled = [self.bracket, *self.parts[0]]
        for mark, part in zip(self.marks, self.parts[1:], strict=True):
            spelled += [mark, *part]
        return spelled


class _Reader:
    """The open brackets, outermost first; the first entry stands for the whole text."""

    def __init__(self, num_steps: int, done: int | None) -> None:
        self._num_steps = num_steps
        self._done = done
        self._frames = [_Frame("")]
        self._changes = False

    def read(self, token: str) -> None:
        if token in ("(", "["):
            self._frames.append(_Frame(token))
            check_nesting(len(self._frames) - 1)
        elif token in (")", "]"):
            self._close(token)
        elif token in (":", "|"):
            frame = self._frames[-1]
            frame.marks.append(token)
            frame.parts.append([])
        else:
            self._frames[-1].parts[-1].append(token)

    def finish(self) -> tuple[_Said, bool]:
        """The text of each step, and whether it can change."""
        while len(self._frames) > 1:
            self._leave("", is_text=True)
        return _joined(self._frames[0].spelled()), self._changes

    def _close(self, token: str) -> None:
        frame = self._frames[-1]
        if frame.bracket != {")": "(", "]": "["}[token]:
            frame.parts[-1].append(token)
            frame.is_text = True
            return
        made = None if frame.is_text or token == ")" else self._made(frame)
        if made is not None:
            self._changes = True
            self._frames.pop()
            self._frames[-1].parts[-1].append(made)
        else:
            weighs = frame.marks == [] or (token == ")" and frame.marks == [":"])
            self._leave(token, is_text=frame.is_text or not weighs)

    def _leave(self, closing: str, *, is_text: bool) -> None:
        """Add the innermost bracket to the text around it, as it was written."""
        frame = self._frames.pop()
        around = self._frames[-1]
        around.parts[-1] += [*frame.spelled(), closing]
        around.is_text = around.is_text or is_text

    def _made(self, frame: _Frame) -> _Said | None:
        """The text of square brackets by step; None if they are only text."""
        if frame.marks and all(mark == "|" for mark in frame.marks):
            options = [_joined(part) for part in frame.parts]
            return lambda step: options[(step - 1) % len(options)](step)
        if frame.marks not in ([":"], [":", ":"]):
            return None
        when = self._when(frame.parts[-1])
        if when is None:
            return None
        after = _joined(frame.parts[-2])
        before = _joined(frame.parts[0]) if len(frame.parts) > 2 else _joined(())
        return lambda step: before(step) if step <= when else after(step)

    def _when(self, part: Sequence[str | _Said]) -> float | None:
        """The number of steps that WHEN means; None if it is not a number."""
        if len(part) != 1 or not isinstance(part[0], str):
            return None
        match = _WHEN.fullmatch(part[0])
        if match is None:
            return None
        value = float(match.group(1))
        if "." in match.group(1):
            return int(max(-1.0, min(1.0, value - (self._done is not None))) * self._num_steps)
        return value - (self._done or 0)


def _joined(parts: Sequence[str | _Said]) -> _Said:
    fixed = [part for part in parts if isinstance(part, str)]
    if len(fixed) == len(parts):
        whole = "".join(fixed)
        return lambda step: whole
    return lambda step: "".join(part if isinstance(part, str) else part(step) for part in parts)


def _check(texts: dict[str, str]) -> None:
    num_chars = sum(map(len, texts))
    if len(texts) > MAX_TEXTS or num_chars > MAX_CHARS:
        raise InvalidParameter(
            f"the prompt has more than {MAX_TEXTS} different texts over its steps, or more than "
            f"{MAX_CHARS} characters in all of them; use fewer [a:b:0.5] and [a|b]",
            param="prompt",
        )
