"""A generation as OpenAI's completion answer, whole or in chunks."""

from collections.abc import Sequence

import msgspec

from server.http.shape import Shape
from server.http.turns import in_turns
from server.protocol.answers import PromptLogprobs
from server.protocol.completions import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionLogprobs,
    CompletionRequest,
)
from server.protocol.kv_transfer import answered_params
from server.text.generation import Generation, PromptRun
from server.text.logprobs import (
    TokenNames,
    completion_logprobs,
    echoed_logprobs,
    extend_completion_logprobs,
    join_completion_logprobs,
    prompt_logprobs,
    token_names,
)
from server.text.output import Delta
from server.text.reply import ReplyHead, TextReply
from server.text.texts import ModelText


class CompletionReply(TextReply):
    """The reply to several prompts with `n` completions each; completion j of prompt i is choice
    i*n + j.

    Args:
        echoes: each prompt's text, which precedes its choices: empty without `echo`.
    """

    chunk_type = CompletionChunk

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
        self._found: dict[int, CompletionLogprobs] = {}
        """Log-probabilities of each choice so far."""

    async def _answer(self, wholes: list[Delta]) -> Completion:
        for prompt in self._prompts:
            await prompt.prepare()
        return Completion(
            **self.head,
            choices=await in_turns(self._choice, wholes),
            usage=self.generation.usage(),
            kv_transfer_params=answered_params(self.generation.runs[0].kv_loan),
        )

    def _take_logprobs(self, delta: Delta) -> None:
        more = self._logprobs(delta)
        if more is not None and delta.index in self._found:
            extend_completion_logprobs(self._found[delta.index], more)
        elif more is not None:
            self._found[delta.index] = more
        delta.logprobs = []

    async def _prepare(self, index: int) -> None:
        await self._prompt_of(index).prepare()

    def _choice(self, whole: Delta) -> CompletionChoice:
        prompt = self._prompt_of(whole.index)
        with_ids = self._request.return_token_ids
        return CompletionChoice(
            index=whole.index,
            text=prompt.echo + whole.text,
            logprobs=prompt.before(self._found.get(whole.index)),
            finish_reason=str(whole.finish_reason),
            stop_reason=whole.stop_reason,
            prompt_logprobs=prompt.wire_logprobs,
            token_ids=whole.token_ids if with_ids else None,
            prompt_token_ids=prompt.token_ids if with_ids else None,
            uncertainty=whole.uncertainty,
            repetition=whole.repetition,
        )

    def _opening(self, index: int) -> list[CompletionChunk]:
        """The chunk with the prompt, if the request asks for it."""
        prompt = self._prompt_of(index)
        if not (self._request.echo or self._request.return_token_ids):
            return []
        none = None if self._request.logprobs is None else CompletionLogprobs([], [], [], [])
        choice = CompletionChunkChoice(index, prompt.echo, prompt.before(none))
        if self._request.return_token_ids:
            choice.prompt_token_ids = prompt.token_ids
        return [self._chunk(choice)]

    def _chunks(self, delta: Delta) -> list[CompletionChunk]:
        with_ids = self._request.return_token_ids and delta.token_ids
        with_logprobs = self._request.logprobs is not None and delta.logprobs
        if not (delta.text or with_logprobs or with_ids or delta.finish_reason):
            return []
        choice = CompletionChunkChoice(delta.index, delta.text, self._logprobs(delta))
        if with_ids:
            choice.token_ids = delta.token_ids
        if delta.finish_reason is not None:
            choice.finish_reason = str(delta.finish_reason)
            choice.stop_reason = delta.stop_reason
            choice.uncertainty = delta.uncertainty or msgspec.UNSET
            choice.repetition = delta.repetition or msgspec.UNSET
        return [self._chunk(choice)]

    def _prompt_of(self, index: int) -> "_Prompt":
        return self._prompts[index // self._request.num_choices]

    def _logprobs(self, delta: Delta) -> CompletionLogprobs | None:
        if self._request.logprobs is None:
            return None
        start = len(self._prompt_of(delta.index).echo)
        return completion_logprobs(
            delta.token_ids,
            delta.logprobs,
            [start + offset for offset in delta.offsets],
            self._names,
            self._request.logprobs,
        )


class _Prompt:
    """The parts of an answer that describe one prompt, made once for all its completions.

    Attributes:
        wire_logprobs: vLLM's `prompt_logprobs`.
    """

    wire_logprobs: PromptLogprobs | None = None

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
        self._is_prepared = False
        self._echoed: CompletionLogprobs | None = None

    def before(self, logprobs: CompletionLogprobs | None) -> CompletionLogprobs | None:
        """A completion's `logprobs`, preceded by those of the prompt if it is echoed. The prompt's
        first token has no value."""
        if self._echoed is None or logprobs is None:
            return logprobs
        return join_completion_logprobs(self._echoed, logprobs)

    async def prepare(self) -> None:
        """Prepare these parts, once; the prompt's log-probabilities have arrived by now."""
        if self._is_prepared:
            return
        self._is_prepared = True
        request = self._request
        if request.echo and request.logprobs is not None:
            self._echoed = await echoed_logprobs(
                self.token_ids,
                self._run.prompt_logprobs or [None] * len(self.token_ids),
                self._text,
                self._names,
                request.logprobs,
                skip_special_tokens=request.skip_special_tokens is not False,
            )
        if request.prompt_logprobs is not None and self._run.prompt_logprobs is not None:
            self.wire_logprobs = await prompt_logprobs(
                self._run.prompt_logprobs, self._names, request.prompt_logprobs
            )
