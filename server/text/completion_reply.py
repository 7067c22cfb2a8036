"""A generation as OpenAI's completion answer, whole or in chunks."""

from collections.abc import Sequence
from functools import cached_property

import msgspec

from server.http.shape import Shape
from server.protocol.answers import PromptLogprobs, Usage
from server.protocol.completions import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionLogprobs,
    CompletionRequest,
)
from server.text.generation import Generation, PromptRun
from server.text.logprobs import (
    TokenNames,
    completion_logprobs,
    join_completion_logprobs,
    prompt_logprobs,
    prompt_offsets,
    token_names,
)
from server.text.output import Delta
from server.text.reply import ReplyHead, TextReply
from server.text.texts import ModelText


class CompletionReply(TextReply):
    """Several prompts with `n` completions each; completion j of prompt i is choice i*n + j.

    Args:
        echoes: each prompt's text as it goes before its choices: empty without `echo`.
    """

    def __init__(
        self,
        request: CompletionRequest,
        head: ReplyHead,
        text: ModelText,
        generation: Generation,
        echoes: Sequence[str],
        shape: Shape | None = None,
    ) -> None:
        super().__init__(head, generation, request.stream_options, shape)
        self._request = request
        names = token_names(text, as_ids=request.return_tokens_as_token_ids)
        self._prompts = [
            _Prompt(run, echo, request, text, names)
            for run, echo in zip(generation.runs, echoes, strict=True)
        ]
        self._names = names

    def _answer(self, parts: list[list[Delta]]) -> Completion:
        return Completion(
            id=self.head.id,
            created=self.head.created,
            model=self.head.model,
            system_fingerprint=self.head.system_fingerprint,
            choices=[self._choice(deltas) for deltas in parts],
            usage=self.generation.usage(),
        )

    def _choice(self, deltas: Sequence[Delta]) -> CompletionChoice:
        last = deltas[-1]
        prompt = self._prompt_of(last.index)
        with_ids = self._request.return_token_ids
        return CompletionChoice(
            index=last.index,
            text=prompt.echo + "".join(delta.text for delta in deltas),
            logprobs=self._logprobs(prompt, deltas, with_prompt=True),
            finish_reason=str(last.finish_reason),
            stop_reason=last.stop_reason,
            prompt_logprobs=prompt.wire_logprobs,
            token_ids=[i for delta in deltas for i in delta.token_ids] if with_ids else None,
            prompt_token_ids=prompt.token_ids if with_ids else None,
            uncertainty=last.uncertainty,
            repetition=last.repetition,
        )

    def _opening(self, index: int) -> list[CompletionChunk]:
        """The prompt, if there is anything to tell of it."""
        prompt = self._prompt_of(index)
        if not (self._request.echo or self._request.return_token_ids):
            return []
        choice = CompletionChunkChoice(
            index, prompt.echo, self._logprobs(prompt, (), with_prompt=True)
        )
        if self._request.return_token_ids:
            choice.prompt_token_ids = prompt.token_ids
        return [self._chunk(choice)]

    def _chunks(self, delta: Delta) -> list[CompletionChunk]:
        with_ids = self._request.return_token_ids and delta.token_ids
        with_logprobs = self._request.logprobs is not None and delta.logprobs
        if not (delta.text or with_logprobs or with_ids or delta.finish_reason):
            return []
        choice = CompletionChunkChoice(
            delta.index,
            delta.text,
            self._logprobs(self._prompt_of(delta.index), [delta], with_prompt=False),
        )
        if with_ids:
            choice.token_ids = delta.token_ids
        if delta.finish_reason is not None:
            choice.finish_reason = str(delta.finish_reason)
            choice.stop_reason = delta.stop_reason
            choice.uncertainty = delta.uncertainty or msgspec.UNSET
            choice.repetition = delta.repetition or msgspec.UNSET
        return [self._chunk(choice)]

    def _usage_chunk(self, usage: Usage) -> CompletionChunk:
        return self._chunk(usage=usage)

    def _chunk(
        self, *choices: CompletionChunkChoice, usage: Usage | msgspec.UnsetType = msgspec.UNSET
    ) -> CompletionChunk:
        return CompletionChunk(
            id=self.head.id,
            created=self.head.created,
            model=self.head.model,
            system_fingerprint=self.head.system_fingerprint,
            choices=list(choices),
            usage=self._usage_so_far() if usage is msgspec.UNSET else usage,
        )

    def _prompt_of(self, index: int) -> "_Prompt":
        return self._prompts[index // self._request.num_choices]

    def _logprobs(
        self, prompt: "_Prompt", deltas: Sequence[Delta], *, with_prompt: bool
    ) -> CompletionLogprobs | None:
        if self._request.logprobs is None:
            return None
        parts = [
            completion_logprobs(
                delta.token_ids,
                delta.logprobs,
                [len(prompt.echo) + offset for offset in delta.offsets],
                self._names,
                self._request.logprobs,
            )
            for delta in deltas
        ]
        if with_prompt and self._request.echo:
            parts.insert(0, prompt.echoed_logprobs)
        return join_completion_logprobs(parts)


class _Prompt:
    """What an answer tells of one prompt, made once for all its completions."""

    def __init__(
        self,
        run: PromptRun,
        echo: str,
        request: CompletionRequest,
        text: ModelText,
        names: TokenNames,
    ) -> None:
        self.echo = echo
        self.token_ids = run.request.prompt_token_ids
        self._run = run
        self._request = request
        self._text = text
        self._names = names

    @cached_property
    def echoed_logprobs(self) -> CompletionLogprobs:
        """The prompt's part of `logprobs`, its first token without a value."""
        offsets = prompt_offsets(
            self._text,
            self.token_ids,
            skip_special_tokens=self._request.skip_special_tokens is not False,
        )
        entries = self._run.prompt_logprobs or [None] * len(self.token_ids)
        num_top = self._request.logprobs or 0
        return completion_logprobs(self.token_ids, entries, offsets, self._names, num_top)

    @cached_property
    def wire_logprobs(self) -> PromptLogprobs | None:
        """vLLM's `prompt_logprobs`."""
        entries, num_top = self._run.prompt_logprobs, self._request.prompt_logprobs
        if entries is None or num_top is None:
            return None
        return prompt_logprobs(entries, self._names, num_top)
