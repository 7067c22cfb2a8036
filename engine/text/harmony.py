"""Harmony, the format of GPT-OSS's answers: messages, each with a channel.

<|channel|>analysis<|message|>I look it up.<|end|><|start|>assistant<|channel|>commentary
to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}<|call|>

<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>It is 5.
"""

import re

from engine.text.answer_pieces import Content, Reasoning
from engine.text.answer_reader import AnswerReader, Waiting

START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
MARKERS = (START, CHANNEL, CONSTRAIN, MESSAGE, END, CALL, RETURN)
"""All texts of special tokens."""
CALL_OPENING = f"{CHANNEL}commentary to=functions."
"""The beginning of a message that calls a function."""
MAX_HEADER_CHARS = 512
_ENDS = (END, CALL, RETURN, START)
_CALLED = re.compile(r"\bto=functions\.([^\s<]+)")


class HarmonyReader(AnswerReader):
    """A reader that separates reasoning, which is in the channel `analysis`, from the rest.

    Messages that call a function are passed on with their markers, in one form, for the parser of
    calls. Of other messages only the text is content.

    Args:
        is_open: whether the reasoning has begun in the prompt.
    """

    def __init__(self, *, is_open: bool) -> None:
        super().__init__()
        self._is_open = is_open
        self._reasons_since_start = is_open
        self._end: int | None = None

    @property
    def reach(self) -> int:
        """Characters of the text that are certain to be reasoning, including its markers."""
        if self._end is not None:
            return self._end
        return self._num_read if self._reasons_since_start else 0

    def _read(self) -> Waiting[None]:
        if self._is_open:
            yield from self._reasoning()
        while True:
            self._said.append(Content(self._part_before(START, CHANNEL)))
            if (yield from self._next_is(START, CHANNEL)):
                yield from self._message()
            elif self._at == len(self._text):
                if self._is_whole:
                    return
                yield

    def _message(self) -> Waiting[None]:
        is_first = self._num_read == 0
        header = ""
        while not (yield from self._skip(MESSAGE)):
            if self._is_whole and self._at == len(self._text):
                return
            header += self._part_before(MESSAGE)
            if len(header) > MAX_HEADER_CHARS:
                self._said.append(Content(header))
                return
        if called := _CALLED.search(header):
            self._said.append(Content(f"{CALL_OPENING}{called[1]}{MESSAGE}"))
            if (yield from self._body(Content)):
                self._said.append(Content(CALL))
        elif f"{CHANNEL}analysis" in header:
            self._reasons_since_start = is_first
            yield from self._reasoning()
        else:
            yield from self._body(Content)

    def _reasoning(self) -> Waiting[None]:
        yield from self._body(Reasoning)
        if self._reasons_since_start and self._end is None:
            self._end = self._num_read

    def _body(self, kind: type[Content] | type[Reasoning]) -> Waiting[bool]:
        """Read a message's text and the marker at its end. Return False if there is none."""
        while True:
            self._said.append(kind(self._part_before(*_ENDS)))
            if marker := (yield from self._next_is(*_ENDS)):
                if marker != START:
                    self._take(len(marker))
                return True
            if self._at == len(self._text):
                if self._is_whole:
                    return False
                yield
