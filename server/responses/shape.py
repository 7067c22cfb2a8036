"""Writes a chat's answer as a response: whole, or as the events of a stream."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from engine.errors import EngineError, RequestAborted
from server.http.errors import ErrorFacts, error_facts, openai_shape, renamed
from server.http.shape import Shape, encode
from server.http.sse import OPENAI_FRAMING, named_event
from server.protocol.answers import Usage
from server.protocol.chat import ChatChunk, ChatCompletion, MessageDelta
from server.protocol.responses import (
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    Response,
    ResponseError,
    ResponseRequest,
    ResponseUsage,
)
from server.responses.convert import OWN_NAMES
from server.responses.output import Event, Output


def error_shape(facts: ErrorFacts) -> bytes:
    """A failure in OpenAI's form, with the field names of a request for a response."""
    return openai_shape(renamed(facts, OWN_NAMES))


class ResponseShape(Shape):
    """The form of one response.

    Attributes:
        response: the response so far.

    Args:
        unique: the text that makes its ids unique.
        stores: whether it will be stored.
        on_end: called when the response has reached its last state, before the client learns of it.
    """

    def __init__(
        self,
        body: ResponseRequest,
        unique: str,
        *,
        model: str,
        stores: bool,
        on_end: Callable[[Response], None],
    ) -> None:
        self.framing = replace(OPENAI_FRAMING, done=b"", failure=self._failure_event)
        self.response = _begun(body, f"resp_{unique}", model, stores)
        self._on_end = on_end
        self._output = Output(unique)
        self._num_events = 0
        self._finish_reason = ""

    def whole(self, answer: ChatCompletion) -> bytes:
        [choice] = answer.choices
        message = choice.message
        logprobs = choice.logprobs.content if choice.logprobs else []
        if reasoning := message.reasoning_content:
            self._output.add_reasoning(reasoning)
        if message.content:
            self._output.add_text(message.content, logprobs)
        for call in message.tool_calls or ():
            self._output.add_call(call.id, call.function.name)
            self._output.add_arguments(call.function.arguments)
        self._finish_reason = choice.finish_reason
        self._output.finish(self._item_status)
        self._complete(answer.usage)
        return encode(self.response)

    def chunk(self, chunk: ChatChunk) -> bytes:
        events = [] if self._num_events else self._opening()
        for choice in chunk.choices:
            logprobs = choice.logprobs.content if choice.logprobs else []
            events += self._added(choice.delta, logprobs)
            if choice.finish_reason is not None:
                self._finish_reason = choice.finish_reason
                events += self._output.finish(self._item_status)
        if not chunk.choices:
            assert isinstance(chunk.usage, Usage)
            self._complete(chunk.usage)
            events.append(self._state_event(f"response.{self.response.status}"))
        return self._written(events)

    def _added(self, delta: MessageDelta, logprobs: Sequence[Any]) -> list[Event]:
        """The events of a chunk. More of an unfinished call comes first, new calls come last."""
        events = []
        calls = delta.tool_calls or ()
        for call in calls:
            if call.id is None and call.function is not None:
                events += self._output.add_arguments(call.function.arguments or "")
        if delta.reasoning_content:
            events += self._output.add_reasoning(delta.reasoning_content)
        if delta.content or (logprobs and not delta.reasoning_content and not calls):
            events += self._output.add_text(delta.content or "", logprobs)
        for call in calls:
            if call.id is not None and call.function is not None:
                events += self._output.add_call(call.id, call.function.name or "")
                if call.function.arguments:
                    events += self._output.add_arguments(call.function.arguments)
        return events

    def fail(self, error: BaseException) -> None:
        """End the response with a failure, or as cancelled."""
        if isinstance(error, RequestAborted):
            self._end("cancelled")
            return
        facts = renamed(error_facts(error), OWN_NAMES)
        code = "rate_limit_exceeded" if facts.status == 429 else "server_error"
        if isinstance(error, EngineError) and facts.status == 400:
            code = "invalid_prompt"
        self.response.error = ResponseError(code, facts.message)
        self._end("failed")

    @property
    def _item_status(self) -> str:
        return "incomplete" if self._finish_reason == "length" else "completed"

    def _complete(self, usage: Usage) -> None:
        self.response.usage = ResponseUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(usage.prompt_tokens_details.cached_tokens),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(
                usage.completion_tokens_details.reasoning_tokens
            ),
            total_tokens=usage.total_tokens,
        )
        if self._finish_reason == "length":
            self.response.incomplete_details = IncompleteDetails("max_output_tokens")
            self._end("incomplete")
        else:
            self.response.completed_at = int(time.time())
            self._end("completed")

    def _end(self, status: Any) -> None:
        self.response.status = status
        self.response.output = self._output.items
        self._on_end(self.response)

    def _opening(self) -> list[Event]:
        return [self._state_event("response.created"), self._state_event("response.in_progress")]

    def _failure_event(self, error: BaseException) -> bytes:
        events = [] if self._num_events else self._opening()
        events += self._output.close("incomplete")
        self.fail(error)
        return self._written([*events, self._state_event("response.failed")])

    def _state_event(self, kind: str) -> Event:
        return {"type": kind, "response": replace(self.response)}

    def _written(self, events: Sequence[Event]) -> bytes:
        data = []
        for event in events:
            numbered = {**event, "sequence_number": self._num_events}
            self._num_events += 1
            data.append(named_event(event["type"], encode(numbered)))
        return b"".join(data)


def _begun(body: ResponseRequest, response_id: str, model: str, stores: bool) -> Response:
    """A response before anything is written."""
    reasoning = body.reasoning
    text = body.text and body.text.format
    sampling = body.model_dump(include={"temperature", "top_p"})
    return Response(
        id=response_id,
        created_at=int(time.time()),
        status="in_progress",
        background=bool(body.background),
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        model=model,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        previous_response_id=body.previous_response_id,
        conversation=None if body.conversation is None else {"id": body.conversation},
        reasoning={"effort": reasoning and reasoning.effort, "summary": None},
        store=stores,
        temperature=sampling["temperature"],
        text={
            "format": text.model_dump(by_alias=True, exclude_none=True)
            if text
            else {"type": "text"}
        },
        tool_choice=body.tool_choice or "auto",
        tools=body.functions,
        top_logprobs=body.top_logprobs or 0,
        top_p=sampling["top_p"],
        metadata=body.metadata or {},
    )
