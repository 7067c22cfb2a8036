"""Writes scripted text for `fake_engine`: tokens of a reply, cut into events.

Without a script, token `i` of completion `index` is a pure function of the prompt, so that a
streamed and a whole answer can be compared.
"""

import asyncio
import time
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

from engine.contract.generate import (
    EngineStats,
    GenerateRequest,
    ModelInfo,
    TokenEvent,
    TokenLogprob,
)
from engine.contract.request import FinishReason
from tests.helpers.server.fake_failure import Failure

Reply = Callable[[GenerateRequest, int], Sequence[int]]
"""Maps (request, completion index) to the tokens that the model would write, end-of-sequence
excluded."""


def model_info(model: str = "fake", **changes: object) -> ModelInfo:
    """Make the facts of a small ready model; `changes` replaces fields."""
    info = ModelInfo(
        model=model,
        path="/nonexistent",
        architecture="LlamaForCausalLM",
        max_model_len=256,
        vocab_size=1000,
        dtype="bfloat16",
        created=1_700_000_000,
        num_kv_blocks=64,
        kv_block_size=16,
        eos_token_ids=(2,),
        config_hash="0badcafe",
    )
    return replace(info, **changes)  # type: ignore[arg-type]


def pure_reply(request: GenerateRequest, index: int) -> list[int]:
    """Write a practically endless reply: as many tokens as may be asked for, none of them
    special."""
    seed = request.sampling.seed or 0
    key = zlib.crc32(repr((request.prompt_token_ids, index, seed)).encode())
    return [3 + (key + 7919 * i) % 900 for i in range(request.sampling.max_tokens)]


async def write(
    engine: Any, request: GenerateRequest, failure: Failure | None
) -> AsyncIterator[TokenEvent]:
    """Write all completions, interleaved."""
    completions = [_EventWriter(engine, request, i, failure) for i in range(request.sampling.n)]
    await asyncio.sleep(engine.first_delay_s)
    while completions:
        for events in list(completions):
            await asyncio.sleep(engine.delay_s)
            await engine.may_write.wait()
            if (request.request_id, events.index) in engine.ended:
                completions.remove(events)
                continue
            event = next(events)
            yield event
            if event.finish_reason is not None:
                completions.remove(events)
            _account(engine, request.model, len(event.token_ids))


def _account(engine: Any, model: str, num_tokens: int) -> None:
    before: Any = engine.stats(model) or EngineStats(kv_blocks_total=64, kv_block_size=16)
    stats = replace(
        before,
        num_running=sum(live.request.num_completions for live in engine.live.values()),
        num_steps=before.num_steps + 1,
        step_tokens=num_tokens,
    )
    engine.publish(model, stats)


class _EventWriter:
    """Cuts one completion's reply into events, the way the scheduler would end it."""

    def __init__(
        self,
        engine: Any,
        request: GenerateRequest,
        index: int,
        failure: Failure | None,
    ) -> None:
        self.engine = engine
        self.request = request
        self.index = index
        self.failure = failure
        self.eos = engine.served[request.model].eos_token_ids
        self.tokens, self.reason, self.stop_token_id = self._decide()
        self.num_written = 0

    def _decide(self) -> tuple[list[int], FinishReason, int | None]:
        sampling = self.request.sampling
        tokens: list[int] = []
        for token in [*self.engine.reply(self.request, self.index), *self.eos[:1]]:
            if len(tokens) == sampling.max_tokens:
                break
            tokens.append(token)
            if token in sampling.stop_token_ids:
                return tokens, FinishReason.STOP, token
            if token in self.eos and not sampling.ignore_eos:
                return tokens, FinishReason.STOP, None
        full = len(tokens) == sampling.max_tokens
        return tokens, FinishReason.LENGTH if full else FinishReason.STOP, None

    def __next__(self) -> TokenEvent:
        first = self.num_written == 0
        failed = self.failure is not None and self.num_written >= self.failure.after
        tokens = [] if failed else self.tokens[self.num_written :][: self.engine.tokens_per_event]
        self.num_written += len(tokens)
        event = TokenEvent(
            request_id=self.request.request_id,
            index=self.index,
            token_ids=tokens,
            logprobs=self._logprobs(tokens, self.request.sampling.logprobs),
            prompt_logprobs=self._prompt_logprobs() if first and self.index == 0 else None,
            num_cached_tokens=self.engine.num_cached_tokens,
            queue_time_s=max(0.0, time.time() - self.request.arrival_time_s) if first else None,
        )
        if failed:
            assert self.failure is not None
            return replace(
                event,
                finish_reason=FinishReason.ERROR,
                failure=self.failure.value(),
            )
        if self.num_written < len(self.tokens):
            return event
        return replace(event, finish_reason=self.reason, stop_token_id=self.stop_token_id)

    def _logprobs(self, tokens: Sequence[int], num_top: int | None) -> list[TokenLogprob] | None:
        if num_top is None:
            return None
        return [self._logprob(token, num_top) for token in tokens]

    def _prompt_logprobs(self) -> list[TokenLogprob | None] | None:
        num_top = self.request.sampling.prompt_logprobs
        if num_top is None:
            return None
        rest = self.request.prompt_token_ids[1:]
        return [None, *(self._logprob(token, num_top) for token in rest)]

    def _logprob(self, token: int, num_top: int) -> TokenLogprob:
        """Make log-probabilities: the token is the most likely one, and the next ids are the
        alternatives."""
        vocab_size = self.engine.served[self.request.model].vocab_size
        top_ids = [(token + i) % vocab_size for i in range(num_top)]
        top_logprobs = [-0.5 - i for i in range(num_top)]
        entropy = token / 1024
        return TokenLogprob(token, -0.5, 1, top_ids, top_logprobs, entropy, entropy / 2)
