"""Separates a model's reasoning from its answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from engine.contract.text_settings import ReasoningParserName
from engine.text.answer_pieces import Content, Reasoning
from engine.text.answer_reader import AnswerReader, Waiting
from engine.text.harmony import CHANNEL, END, MARKERS, MESSAGE, HarmonyReader


@dataclass(frozen=True, slots=True)
class ReasoningMarkers:
    """The markers around the reasoning of a family of models.

    Attributes:
        is_first: whether the answer begins with reasoning even without an opening marker, as in
            DeepSeek R1.
    """

    opening: str
    closing: str
    is_first: bool = False

    @property
    def tokens(self) -> Sequence[str]:
        """The parts of the markers that may be special tokens."""
        return (self.opening.removesuffix("thought"), self.closing)

    def reader(self, *, is_open: bool) -> "ReasoningReader | HarmonyReader":
        """Create the reader of one answer; `is_open` says whether the prompt has begun the
        reasoning."""
        return ReasoningReader(self, is_open=is_open)

    def is_open_after(self, prompt: str) -> bool:
        """Whether an answer to a prompt that ends with this text begins within reasoning."""
        end = prompt.rstrip()
        return end.endswith(self.opening) or (self.is_first and not end.endswith(self.closing))

    def is_open_within(self, text: str) -> bool:
        """Whether an answer that begins with this text is within reasoning at its end."""
        opened, closed = text.rfind(self.opening), text.rfind(self.closing)
        return opened > closed or (self.is_first and closed < 0)


class HarmonyMarkers(ReasoningMarkers):
    """The markers of GPT-OSS, whose answers have more parts than reasoning and content."""

    @property
    def tokens(self) -> Sequence[str]:
        return MARKERS

    def reader(self, *, is_open: bool) -> HarmonyReader:
        return HarmonyReader(is_open=is_open)


REASONING_MARKERS: Mapping[ReasoningParserName, ReasoningMarkers] = {
    "deepseek_r1": ReasoningMarkers("<think>", "</think>", is_first=True),
    "qwen3": ReasoningMarkers("<think>", "</think>"),
    "mistral": ReasoningMarkers("[THINK]", "[/THINK]"),
    "gemma4": ReasoningMarkers("<|channel>thought", "<channel|>"),
    "harmony": HarmonyMarkers(f"{CHANNEL}analysis{MESSAGE}", END),
}


assert set(REASONING_MARKERS) == set(get_args(ReasoningParserName))


class ReasoningReader(AnswerReader):
    """A reader that expects reasoning at the beginning, between its markers, or none.

    Line breaks around the reasoning are left out, as in chat templates. Without a closing marker
    all of the text is reasoning.

    Args:
        is_open: whether the reasoning has begun in the prompt.
    """

    def __init__(self, markers: ReasoningMarkers, *, is_open: bool) -> None:
        super().__init__()
        self._markers = markers
        self._is_open = is_open
        self._has_begun = False
        self._end: int | None = None

    @property
    def reach(self) -> int:
        """Characters of the text that are certain to be reasoning, including its markers."""
        if self._end is not None:
            return self._end
        return self._num_read if self._has_begun else 0

    def _read(self) -> Waiting[None]:
        space = ""
        while (yield from self._peek()).isspace():
            space += self._take(1)
        if (yield from self._skip(self._markers.opening)):
            yield from self._reasoning("")
        elif self._is_open:
            yield from self._reasoning(space)
        else:
            self._said.append(Content(space))
        while not (self._is_whole and self._at == len(self._text)):
            self._said.append(Content(self._take(len(self._text) - self._at)))
            if not self._is_whole:
                yield

    def _reasoning(self, begun: str) -> Waiting[None]:
        """Read to the end of the reasoning and past the line breaks after it."""
        self._has_begun = True
        held = begun.lstrip("\n")
        if not held:
            yield from self._line_breaks()
        while True:
            part = held + self._part_before(self._markers.closing)
            shown = part.rstrip("\n")
            held = part[len(shown) :]
            self._said.append(Reasoning(shown))
            if (yield from self._skip(self._markers.closing)):
                self._end = self._num_read
                return (yield from self._line_breaks())
            if self._at == len(self._text):
                if self._is_whole:
                    return None
                yield

    def _line_breaks(self) -> Waiting[None]:
        while (yield from self._peek()) == "\n":
            self._take(1)
