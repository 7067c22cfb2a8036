"""Conversations as the text that a model was trained on, rendered by the checkpoint's Jinja
template.

The result equals that of transformers' `apply_chat_template`. Encode it with
`add_special_tokens=False`: templates write begin-of-text themselves.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError

from engine.errors import CorruptFile, EngineError, InvalidParameter
from engine.text.content_parts import (
    accepts_strings,
    detect_content_format,
    flatten_content,
    split_content,
)
from engine.text.template_sandbox import MAX_CHARS, create_environment

_END_MARK = "CONTINUE_FINAL_MESSAGE_TAG "
"""The mark that transformers uses. Its space shows whether the template trims messages."""

_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A model's chat template, compiled once. Thread-safe.

    Args:
        source: Jinja; with named templates, the one for plain chats.
        special_tokens: `bos_token`, `eos_token` ... as the template names them.

    Raises:
        CorruptFile: the template is not valid Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = create_environment()
        try:
            tree = environment.parse(source)
            self._template: Template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise CorruptFile(
                f"the model's chat template is not valid Jinja: line {error.lineno}: "
                f"{error.message}"
            ) from error
        except RecursionError as error:
            raise CorruptFile("the model's chat template is nested too deeply") from error
        self.content_format = detect_content_format(tree)
        """The form of a message's content that the template takes: a string or a list of parts."""
        self._accepts_strings = self.content_format == "string" or accepts_strings(tree)
        self._knows_developer = "developer" in source
        self._special_tokens = dict(special_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """Render a conversation as the prompt's text.

        Content is given to the template in the form it takes: lists of text parts are joined, or
        strings wrapped. The role `developer` is passed as `system` to a template that does not use
        it.

        Args:
            add_generation_prompt: end with the beginning of the assistant's answer.
            continue_final_message: end within the last message, so that the model continues it.
            kwargs: further variables of the template (`chat_template_kwargs`).

        Raises:
            InvalidParameter: the template refuses the conversation, with its message, or fails.
        """
        _check_options(messages, add_generation_prompt, continue_final_message, kwargs)
        try:
            prepared = [_plain(message) for message in self._adapt(messages)]
            final_text = _mark_end(prepared[-1]) if continue_final_message else None
            variables = {"documents": None, **self._special_tokens, **_plain(kwargs)}
            text = self._generate(
                {
                    **variables,
                    "messages": prepared,
                    "tools": _plain(tools),
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except EngineError:
            raise
        except Exception as error:
            # Foreign code may fail in any way, most often because of its input.
            raise InvalidParameter(
                f"the model's chat template refuses these messages: {_reason(error)}",
                param="messages",
            ) from error
        return text if final_text is None else _cut_at_mark(text, final_text)

    def _adapt(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        adapted = flatten_content(messages) if self.content_format == "string" else list(messages)
        if not self._accepts_strings:
            adapted = split_content(adapted)
        return [self._adapt_fields(message) for message in adapted]

    def _adapt_fields(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Adapt a message's fields as transformers does: no nulls, which templates print as None,
        and all aliases of reasoning."""
        fields = {name: value for name, value in message.items() if value is not None}
        if fields.get("role") == "developer" and not self._knows_developer:
            fields["role"] = "system"
        for name in _REASONING_FIELDS:
            if name in fields:
                reasoning = fields[name]
                return {"thinking": reasoning, **fields, "reasoning_content": reasoning}
        return fields

    def _generate(self, variables: dict[str, Any]) -> str:
        pieces, size = [], 0
        for piece in self._template.generate(variables):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_CHARS:
                raise TemplateError(f"the conversation is longer than {MAX_CHARS} characters")
        return "".join(pieces)


def _check_options(
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool,
    continue_final_message: bool,
    kwargs: Mapping[str, Any],
) -> None:
    if not messages:
        raise InvalidParameter("messages is empty; send at least one", param="messages")
    if add_generation_prompt and continue_final_message:
        raise InvalidParameter(
            "continue_final_message cannot be combined with add_generation_prompt; set "
            "add_generation_prompt to false",
            param="continue_final_message",
        )
    if "messages" in kwargs:
        raise InvalidParameter(
            "chat_template_kwargs must not contain messages; leave it out",
            param="chat_template_kwargs",
        )


def _mark_end(message: dict[str, Any]) -> str:
    """Put the mark after the message's text and return that text."""
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = content + _END_MARK
        return content
    for part in reversed(content if isinstance(content, list) else []):
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            text: str = part["text"]
            part["text"] = text + _END_MARK
            return text
    raise InvalidParameter(
        "continue_final_message needs a last message with text in it", param="messages"
    )


def _cut_at_mark(text: str, final_text: str) -> str:
    mark = _END_MARK.strip()
    place = text.rfind(mark)
    if place < 0 or final_text.strip() not in text:
        raise InvalidParameter(
            "continue_final_message: the model's chat template does not show the whole last "
            "message, so it cannot be continued",
            param="continue_final_message",
        )
    trims = not text.startswith(_END_MARK, place)
    return text[:place].rstrip() if trims else text[:place]


def _plain(value: Any) -> Any:
    """Copy a value using only JSON's own types, since the sandbox cannot vouch for methods of
    others."""
    match value:
        case None | bool():
            return value
        case str():
            return str.__str__(value)
        case int():
            return int(value)
        case float():
            return float(value)
        case Mapping():
            return {_plain(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
    raise InvalidParameter(
        f"a value of type {type(value).__name__} cannot be given to a chat template"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "they are nested too deeply"
    if isinstance(error, MemoryError):
        return "the text would be too long"
    return (str(error) or type(error).__name__)[:1000]
