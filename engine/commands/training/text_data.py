"""Reads examples of texts from a JSONL file, with one object per line in one of these forms:

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    {"prompt": "…", "completion": "…"}
    {"text": "…"}

Of messages the last one, which must be the assistant's, is learned; in the second form it is the
completion, in the third everything. What comes before is read but not learned.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import EngineError, InvalidParameter
from engine.text.chat_template import ChatTemplate
from engine.text.tokenizer import Tokenizer

MAX_BYTES = 1 << 30
"""The most bytes of the file, as all examples stay in memory."""


@dataclass(frozen=True, slots=True)
class TextExample:
    """A text's tokens; those from `first_learned` on, at least one, are learned."""

    token_ids: list[int]
    first_learned: int


@dataclass(frozen=True, slots=True)
class TextExamples:
    """The examples of a file, and the number of those that were cut."""

    examples: list[TextExample]
    num_cut: int


class TextReader:
    """Turns lines into tokens as the served model would.

    Args:
        max_length: the most tokens of an example; the rest is cut.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        template = tokenizer.chat_template
        self._template = template and ChatTemplate(template, tokenizer.special_tokens)

    def read(self, path: Path) -> TextExamples:
        """Read all examples of a file.

        Raises:
            InvalidParameter: the file cannot be read, or a line is not an example; the message
                names it.
        """
        examples = []
        num_cut = 0
        for number, line in enumerate(_lines(path), 1):
            if not line.strip():
                continue
            try:
                whole = self.example(_object(line))
            except EngineError as error:
                raise InvalidParameter(f"line {number} of the data: {error.message}") from None
            if whole.first_learned >= self._max_length:
                raise InvalidParameter(
                    f"line {number} of the data: the text to learn begins at token "
                    f"{whole.first_learned}, beyond --max-length, which is {self._max_length}; "
                    f"raise it or shorten the prompt"
                )
            num_cut += len(whole.token_ids) > self._max_length
            kept = whole.token_ids[: self._max_length]
            examples.append(TextExample(kept, whole.first_learned))
        if not examples:
            raise InvalidParameter("the data has no examples; give one JSON object per line")
        return TextExamples(examples, num_cut)

    def example(self, fields: Mapping[str, Any]) -> TextExample:
        """The example of one line, of any length.

        Raises:
            InvalidParameter: it has none of the forms.
        """
        match fields:
            case {"messages": list(messages)} if messages:
                return self._of_messages(messages)
            case {"prompt": str(prompt), "completion": str(completion)} if completion:
                return self._of_parts(self._encode(prompt), completion)
            case {"text": str(text)} if text:
                return self._of_parts([], text)
        raise InvalidParameter(
            "an example needs messages, or prompt and completion, or text; this one has "
            f"{', '.join(list(fields)[:8]) or 'no keys'}"
        )

    def question(self, text: str) -> list[int]:
        """The tokens of a sample's prompt: a user's message if the model has a chat template."""
        if not self._template:
            return self._encode(text)
        rendered = self._template.render([{"role": "user", "content": text}])
        return self._encode(rendered, add_special_tokens=False)

    def _of_messages(self, messages: list[Any]) -> TextExample:
        if not self._template:
            raise InvalidParameter(
                "the model has no chat template; give prompt and completion instead of messages"
            )
        if not all(isinstance(message, dict) for message in messages):
            raise InvalidParameter("each message must be an object with role and content")
        if messages[-1].get("role") != "assistant":
            raise InvalidParameter(
                "the last message is the one to learn; its role must be assistant"
            )
        before = self._template.render(messages[:-1]) if messages[1:] else ""
        whole = self._template.render(messages, add_generation_prompt=False)
        if not before or not whole.startswith(before):
            raise InvalidParameter(
                "the chat template does not let an answer follow its question; give prompt and "
                "completion instead of messages"
            )
        prompt = self._encode(before, add_special_tokens=False)
        return self._of_parts(prompt, whole[len(before) :], ends=True)

    def _of_parts(self, prompt: list[int], learned: str, *, ends: bool = False) -> TextExample:
        """Make an example of a prompt and the text to learn.

        Args:
            ends: whether the text has its own end.
        """
        if prompt:
            answer = self._encode(learned, add_special_tokens=False)
        else:
            answer = self._encode(learned)
        end = [] if ends else list(self._tokenizer.eos_token_ids[:1])
        # The first token of a text is not learned, as no token predicts it.
        first = max(1, len(prompt))
        token_ids = [*prompt, *answer, *end]
        if len(token_ids) <= first:
            raise InvalidParameter(
                "there is nothing to learn: the text is a single token; give a longer one"
            )
        return TextExample(token_ids, first)

    def _encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)


def _lines(path: Path) -> list[str]:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InvalidParameter(
                f"the data has {size / 2**20:.0f} MiB; {MAX_BYTES >> 20} MiB is the limit; give "
                f"a part of it"
            )
        return path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise InvalidParameter("the data is not UTF-8; convert it to UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InvalidParameter(f"the data cannot be read: {reason}") from None


def _object(line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise InvalidParameter("an example must be a JSON object")
    return fields
