"""The engine's side of one HTTP request for text: submit, read, count, close.

A request may hold several prompts, each of which may have several completions. Their deltas come
out as one stream, as they arrive. Closing aborts whatever the engine is still doing.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from engine.contract.generate import GenerateRequest, KvLoan, TokenEvent, TokenLogprob
from engine.contract.request import FinishReason
from engine.text.tokenizer import Tokenizer
from engine.worker.client import EngineClient, TokenStream
from server.http.admission import Lease
from server.http.engine_run import EngineRun, cancelled, check_event, cut_short, read_events
from server.http.live_requests import Progress
from server.http.request_trace import current_trace
from server.http.turns import in_turns
from server.protocol.answers import PromptTokensDetails, Usage
from server.text.best_of import best_of
from server.text.metrics import RequestMeter, TextMetrics
from server.text.output import ChoiceOutput, Delta, TextOptions


@dataclass(slots=True)
class Tally:
    """Token counts of all prompts of a request so far, updated as tokens come, because streams ask
    often."""

    is_begun: bool = False
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_generated_tokens: int = 0


class PromptRun:
    """A prompt in the engine, with its completions.

    Attributes:
        prompt_logprobs: known from the first delta on, if requested.
        kv_loan: known from the last delta on, if the prompt's blocks are kept for another server.
    """

    def __init__(
        self,
        request: GenerateRequest,
        meter: RequestMeter,
        choices: Sequence[ChoiceOutput],
        tally: Tally,
    ) -> None:
        self.request = request
        self.choices = choices
        self.prompt_logprobs: list[TokenLogprob | None] | None = None
        self.kv_loan: KvLoan | None = None
        self._stream: TokenStream | None = None
        self._meter = meter
        self._num_open = len(choices)
        self._is_closed = False
        self._unfinished = FinishReason.ABORT
        self._awaits_prompt = request.sampling.prompt_logprobs is not None
        self._tally = tally
        self._num_cached_tokens = 0
        tally.num_prompt_tokens += len(request.prompt_token_ids)

    def send(self, engine: EngineClient) -> None:
        """Send the prompt to the engine, unless it has it already.

        Raises:
            RequestAborted: the run was closed in the meantime.
            Draining, UnknownModel, ModelNotReady: the engine does not take it.
        """
        if self._is_closed:
            raise cancelled()
        if self._stream is None:
            self._stream = engine.submit(self.request)
            # The pixels are the engine's from here on.
            self.request = replace(self.request, states=())

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """The deltas of the events that the engine has for the sent prompt, until every completion
        has ended.

        Raises:
            RequestAborted: the run was closed in the meantime.
            EngineError: the engine failed the request, or died.
        """
        assert self._stream is not None
        held: list[TokenEvent] = []
        try:
            async with aclosing(read_events(self._stream)) as events:
                async for event in events:
                    if self._is_closed:
                        break
                    held.append(event)
                    # The prompt's log-probabilities come with completion 0 and open every choice.
                    if self._awaits_prompt and event.index != 0:
                        continue
                    self._awaits_prompt = False
                    for ready in held:
                        delta = self._take(ready)
                        if delta is not None:
                            yield delta
                    held.clear()
                    if self._num_open == 0:
                        return
            raise cancelled() if self._is_closed else cut_short()
        except Exception:
            self._unfinished = FinishReason.ERROR
            raise

    def _take(self, event: TokenEvent) -> Delta | None:
        choice = self.choices[event.index]
        if choice.finish_reason is not None:
            return None
        check_event(event)
        self._meter.on_event(event)
        self._tally.is_begun = True
        if event.num_cached_tokens > self._num_cached_tokens:
            self._tally.num_cached_tokens += event.num_cached_tokens - self._num_cached_tokens
            self._num_cached_tokens = event.num_cached_tokens
        if event.prompt_logprobs is not None:
            self.prompt_logprobs = event.prompt_logprobs
        self.kv_loan = self.kv_loan or event.kv_loan
        delta = choice.add(event)
        self._tally.num_generated_tokens += len(delta.token_ids)
        if delta.finish_reason is not None:
            self._num_open -= 1
            self._meter.complete(delta.finish_reason)
            self._meter.on_scores(choice.uncertainty)
            # The engine does not know stop strings and would write on.
            assert self._stream is not None
            self._stream.end(event.index)
        return delta

    async def aclose(self) -> None:
        """Abort what is unfinished and count it. Idempotent."""
        self._is_closed = True
        for _ in range(self._num_open):
            self._meter.complete(self._unfinished)
        self._num_open = 0
        self._meter.close(
            num_prompt_tokens=len(self.request.prompt_token_ids),
            num_generation_tokens=sum(choice.num_tokens for choice in self.choices),
        )
        if self._stream is not None:
            await self._stream.aclose()


class Generation(EngineRun):
    """All prompts of one HTTP request.

    Args:
        num_at_once: the most prompts that the engine has at a time, so that others' requests do not
            wait for all of them.

    Attributes:
        num_choices: number of texts in the answer, of all prompts together.
        keeps_text: the choices keep their whole text for the log.
    """

    def __init__(
        self,
        id: str,
        engine: EngineClient,
        metrics: TextMetrics,
        lease: Lease,
        num_at_once: int = 1,
    ) -> None:
        super().__init__(id, lease)
        self.runs: list[PromptRun] = []
        self.num_choices = 0
        self.keeps_text = False
        self._engine = engine
        self._metrics = metrics
        self._num_at_once = num_at_once
        self._tally = Tally()
        self._num_best: int | None = None

    async def submit(
        self,
        tokenizer: Tokenizer,
        requests: Sequence[GenerateRequest],
        options: TextOptions,
        num_best: int | None = None,
    ) -> None:
        """Send the engine as many prompts as it may have at once; `deltas` sends the others.

        Args:
            num_best: answer with this many of each prompt's completions, which have
                log-probabilities; by default all.

        Raises:
            Draining, UnknownModel, ModelNotReady, RequestAborted: some may have been sent before;
                close this.
        """
        self.keeps_text = options.keep_text
        current_trace().sampling = requests[0].sampling
        self._num_best = num_best

        def begin(request: GenerateRequest) -> None:
            if self._is_cancelled:
                raise cancelled()
            choices = [
                ChoiceOutput(self.num_choices + i, tokenizer, request.prompt_token_ids, options)
                for i in range(request.sampling.n)
            ]
            self.num_choices += num_best or len(choices)
            meter = self._metrics.meter(request.model, request.adapter, request.arrival_time_s)
            run = PromptRun(request, meter, choices, self._tally)
            self.runs.append(run)
            if len(self.runs) <= self._num_at_once:
                run.send(self._engine)

        await in_turns(begin, requests)

    @property
    def has_structure(self) -> bool:
        """Whether a text must have a form that the engine has not read yet."""
        return any(run.request.sampling.structure is not None for run in self.runs)

    def usage(self) -> Usage:
        """Tokens so far. A stop string's last token counts; later tokens do not."""
        tally = self._tally
        return Usage(
            prompt_tokens=tally.num_prompt_tokens,
            completion_tokens=tally.num_generated_tokens,
            total_tokens=tally.num_prompt_tokens + tally.num_generated_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=tally.num_cached_tokens),
        )

    def deltas(self) -> AsyncGenerator[Delta, None]:
        """The deltas of all prompts, as they come. Close the iterator if you leave it early."""
        return self._deltas_of(self.runs[0]) if len(self.runs) == 1 else self._merged()

    def _deltas_of(self, run: PromptRun) -> AsyncGenerator[Delta, None]:
        return run.deltas() if self._num_best is None else best_of(run.deltas(), self._num_best)

    async def _merged(self) -> AsyncGenerator[Delta, None]:
        """The deltas of several prompts, in the order of arrival. The first failure ends them
        all."""
        queue: asyncio.Queue[Delta | BaseException | None] = asyncio.Queue()
        places = asyncio.Semaphore(self._num_at_once)

        async def pump(run: PromptRun) -> None:
            try:
                async with places:
                    run.send(self._engine)
                    async with aclosing(self._deltas_of(run)) as deltas:
                        async for delta in deltas:
                            queue.put_nowait(delta)
                queue.put_nowait(None)
            except Exception as error:
                queue.put_nowait(error)

        tasks = [asyncio.create_task(pump(run)) for run in self.runs]
        try:
            num_open = len(tasks)
            while num_open:
                item = await queue.get()
                if item is None:
                    num_open -= 1
                elif isinstance(item, BaseException):
                    raise item
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def progress(self) -> Progress:
        choices = [choice for run in self.runs for choice in run.choices]
        return Progress(
            is_begun=self._tally.is_begun,
            num_results=len(choices) or 1,  # before it is submitted
            num_finished=sum(choice.finish_reason is not None for choice in choices),
            num_prompt_tokens=self._tally.num_prompt_tokens,
            num_generated_tokens=self._tally.num_generated_tokens,
        )

    async def _abort(self) -> None:
        await self._end()

    async def _end(self) -> None:
        for run in self.runs:
            await run.aclose()
