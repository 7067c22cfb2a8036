"""A generation as OpenAI's chat answer, whole or in chunks."""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from engine.contract.request import FinishReason
from server.http.shape import Shape
from server.http.turns import in_turns
from server.protocol.answers import (
    CompletionTokensDetails,
    PromptLogprobs,
    SemanticEntropy,
    Usage,
)
from server.protocol.chat import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionRequest,
    ChatLogprobs,
    MessageDelta,
)
from server.protocol.kv_transfer import answered_params
from server.text.answer_format import AnswerFormat
from server.text.chat_message import message_delta, whole_message
from server.text.generation import Generation
from server.text.logprobs import (
    TokenNames,
    chat_logprobs,
    prompt_logprobs,
    token_names,
    written_chat_logprobs,
)
from server.text.output import Delta
from server.text.reasoning_count import ReasoningCount
from server.text.reply import ReplyHead, TextReply
from server.text.texts import ModelText


class ChatReply(TextReply):
    """The reply to a chat: one prompt, `n` answers.

    Args:
        judge: compares the answers by meaning; None if that was not requested.
    """

    chunk_type = ChatChunk

    def __init__(
        self,
        request: ChatCompletionRequest,
        head: ReplyHead,
        text: ModelText,
        generation: Generation,
        answers: AnswerFormat,
        shape: Shape | None = None,
        judge: Callable[[Sequence[str]], Awaitable[SemanticEntropy]] | None = None,
    ) -> None:
        super().__init__(head, generation, request.stream_options, shape)
        self._request = request
        self._answers = answers
        self._parsers = [answers.parser() for _ in range(generation.num_choices)]
        self._reasoning = [ReasoningCount(parser) for parser in self._parsers]
        self._prompt_run = generation.runs[0]
        self._text = text
        self._names = token_names(text, as_ids=request.return_tokens_as_token_ids)
        self._prefix = _echoed_text(request)
        self._judge = judge
        self._entries: defaultdict[int, list[Any]] = defaultdict(list)
        """Log-probabilities of each choice so far, as JSON."""

    async def _answer(self, wholes: list[Delta]) -> ChatCompletion:
        return ChatCompletion(
            **self.head,
            choices=await in_turns(self._choice, wholes),
            usage=self._usage(),
            prompt_logprobs=await self._prompt_logprobs(),
            prompt_token_ids=self._prompt_run.request.prompt_token_ids
            if self._request.return_token_ids
            else None,
            kv_transfer_params=answered_params(self._prompt_run.kv_loan),
        )

    async def _complete(self, answer: ChatCompletion) -> ChatCompletion:
        if self._judge is not None:
            texts = [choice.message.content or "" for choice in answer.choices]
            answer.semantic_entropy = await self._judge(texts)
        return answer

    def _take_logprobs(self, delta: Delta) -> None:
        if self._request.logprobs:
            self._entries[delta.index] += written_chat_logprobs(
                delta.logprobs, *self._logprob_names
            )
        delta.logprobs = []

    def _choice(self, whole: Delta) -> ChatChoice:
        pieces = self._parsers[whole.index].add(whole.text, is_last=True)
        self._reasoning[whole.index].add(whole.offsets)
        entries = self._entries[whole.index]
        return ChatChoice(
            index=whole.index,
            message=whole_message(pieces, self._prefix),
            logprobs=ChatLogprobs(content=entries) if self._request.logprobs else None,
            finish_reason=self._finish_reason(whole),
            stop_reason=whole.stop_reason,
            token_ids=whole.token_ids if self._request.return_token_ids else None,
            uncertainty=whole.uncertainty,
            repetition=whole.repetition,
        )

    def _opening(self, index: int) -> list[ChatChunk]:
        """The chunk with the role, then the message that is continued, if the request asks for
        it."""
        # Calls and reasoning may come without content.
        content = "" if self._answers.is_plain else None
        first = self._chunk(ChatChunkChoice(index, MessageDelta(role="assistant", content=content)))
        if self._request.return_token_ids:
            first.prompt_token_ids = self._prompt_run.request.prompt_token_ids
        if not self._prefix:
            return [first]
        return [first, self._chunk(ChatChunkChoice(index, MessageDelta(content=self._prefix)))]

    def _chunks(self, delta: Delta) -> list[ChatChunk]:
        chunks = []
        with_ids = self._request.return_token_ids and delta.token_ids
        with_logprobs = self._request.logprobs and delta.logprobs
        parser = self._parsers[delta.index]
        pieces = parser.add(delta.text, is_last=delta.finish_reason is not None)
        self._reasoning[delta.index].add(delta.offsets)
        if pieces or with_logprobs or with_ids:
            message = message_delta(pieces)
            choice = ChatChunkChoice(delta.index, message, self._logprobs(delta))
            if with_ids:
                choice.token_ids = delta.token_ids
            chunks.append(self._chunk(choice))
        if delta.finish_reason is not None:
            end = ChatChunkChoice(
                delta.index,
                MessageDelta(),
                finish_reason=self._finish_reason(delta),
                stop_reason=delta.stop_reason,
                uncertainty=delta.uncertainty or msgspec.UNSET,
                repetition=delta.repetition or msgspec.UNSET,
            )
            chunks.append(self._chunk(end))
        return chunks

    def _finish_reason(self, last: Delta) -> str:
        """The finish reason: a call that was cut off by the length keeps that reason."""
        if last.finish_reason is FinishReason.STOP and self._parsers[last.index].num_calls:
            return "tool_calls"
        return str(last.finish_reason)

    def _usage(self) -> Usage:
        usage = self.generation.usage()
        num_tokens = sum(count.num_tokens for count in self._reasoning)
        usage.completion_tokens_details = CompletionTokensDetails(reasoning_tokens=num_tokens)
        return usage

    def _logprobs(self, delta: Delta) -> ChatLogprobs | None:
        if not self._request.logprobs:
            return None
        return chat_logprobs(delta.logprobs, *self._logprob_names)

    @property
    def _logprob_names(self) -> tuple[TokenNames, ModelText, int]:
        return self._names, self._text, self._request.top_logprobs or 0

    async def _prompt_logprobs(self) -> PromptLogprobs | None:
        entries = self._prompt_run.prompt_logprobs
        if self._request.prompt_logprobs is None or entries is None:
            return None
        return await prompt_logprobs(entries, self._names, self._request.prompt_logprobs)


def _echoed_text(request: ChatCompletionRequest) -> str:
    last = request.messages[-1]
    return last.text() if request.echo and last.role == "assistant" else ""
