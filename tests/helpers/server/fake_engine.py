"""An `EngineClient` without an engine: scripted tokens, delays, failures, death.

Deterministic: without a script, token `i` of completion `index` is a pure function of the prompt,
so that a streamed and a whole answer can be compared. It behaves as the real client does: errors of
`submit` are raised at once, later ones arrive as events, a dead worker raises from the iterator.
"""

import asyncio
import time
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engine import errors
from engine.contract.adapter_orders import AdapterOrder, AdapterReport
from engine.contract.generate import (
    EngineStats,
    GenerateRequest,
    ModelInfo,
    TokenEvent,
    TokenLogprob,
)
from engine.contract.model_spec import ModelSpec
from engine.contract.request import FinishReason, Info, Stats
from engine.contract.settings import EngineConfig
from engine.contract.status import ModelStatus, Phase
from engine.errors import (
    Draining,
    EngineDead,
    EngineError,
    ModelConflict,
    ModelNotReady,
    ModelUnloading,
    UnknownAdapter,
    UnknownModel,
)
from engine.worker.client import EngineClient
from engine.worker.step_listeners import StepListeners

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


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Ends a completion with finish reason `error` after a number of tokens."""

    after: int = 0
    code: str = "out_of_kv_blocks"
    message: str = "the request needs 9 blocks; the pool has 8; raise kv_cache_memory_gib"
    param: str | None = None

    def value(self) -> errors.Failure:
        return errors.Failure(self.code, self.message, self.param)


@dataclass(eq=False)
class _Stream:
    """One submitted request. Iterates over the events of all its completions, interleaved."""

    engine: "FakeEngineClient"
    request: GenerateRequest
    queue: "asyncio.Queue[TokenEvent | EngineDead | None]" = field(default_factory=asyncio.Queue)
    num_open: int = 0
    ended: set[int] = field(default_factory=set)
    task: "asyncio.Task[None] | None" = None

    def __aiter__(self) -> AsyncIterator[TokenEvent]:
        return self

    async def __anext__(self) -> TokenEvent:
        if self.num_open == 0:
            raise StopAsyncIteration
        item = await self.queue.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, EngineDead):
            self.num_open = 0
            raise item
        if item.finish_reason is not None:
            self.num_open -= 1
        return item

    def end(self, index: int) -> None:
        if index not in self.ended:
            self.engine.ended.append((self.request.request_id, index))
            self.ended.add(index)

    async def aclose(self) -> None:
        if self.engine.live.pop(self.request.request_id, None) is not None:
            if self.task is not None:
                self.task.cancel()
            self.engine.aborted.append(self.request.request_id)
        self.num_open = 0
        self.queue.put_nowait(None)  # for a reader who waits


class FakeEngineClient(EngineClient):
    """Implements `engine.worker.client.EngineClient`. Every attribute may be changed while it runs.

    Attributes:
        reply: writes the tokens; shorter than `max_tokens` ends in end-of-sequence (reason stop).
        delay_s: pause before every event; `first_delay_s` before the first.
        tokens_per_event: how many tokens one event carries.
        num_cached_tokens: reported by every event.
        failure: fails the requests submitted while it is set.
        submit_error: raised by `submit`.
        requests, aborted: what was asked for, and request ids closed before their end.
        ended: request ids and indices of completions that nobody reads on.
        live: streams not yet ended, by request id.
        stop_timeouts: the arguments of `stop`.
        config_of_server: the configuration of models without settings of their own.
        specs: what was loaded on demand, by name.
        adapter_orders: the adapters that were loaded on demand.
        load_error: what becomes of loads.
        make_info: the info of a model that is loaded.
        may_change: loads and unloads wait for it.
    """

    def __init__(
        self,
        *models: str | ModelInfo,
        reply: Reply | Sequence[int] | None = None,
        delay_s: float = 0.0,
        first_delay_s: float = 0.0,
        tokens_per_event: int = 1,
        num_cached_tokens: int = 0,
        ready: bool = True,
    ) -> None:
        infos = [m if isinstance(m, ModelInfo) else model_info(m) for m in models or ("fake",)]
        self.served: dict[str, Any] = {info.model: info for info in infos}
        self.reply = self._as_reply(reply)
        self.delay_s = delay_s
        self.first_delay_s = first_delay_s
        self.tokens_per_event = tokens_per_event
        self.num_cached_tokens = num_cached_tokens
        self.failure: Failure | None = None
        self.submit_error: Exception | None = None
        self.requests: list[GenerateRequest] = []
        self.aborted: list[str] = []
        self.ended: list[tuple[str, int]] = []
        self.live: dict[str, _Stream] = {}
        self.steps = StepListeners()
        self.started = False
        self.stopped = False
        self.stop_timeouts: list[float] = []
        self.check_text: Any = None
        self.on_gone: Callable[[str, str | None], None] | None = None
        self.config_of_server = EngineConfig()
        self.specs: dict[str, ModelSpec] = {}
        self.adapter_orders: list[AdapterOrder] = []
        self.load_error: EngineError | None = None
        self.make_info: Callable[[ModelSpec], Info] = lambda spec: model_info(spec.name)
        self.may_change = asyncio.Event()
        self.may_change.set()
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._stats: dict[str, Stats] = {}
        phase = Phase.READY if ready else Phase.STARTING
        self._statuses = {name: ModelStatus(model=name, phase=phase) for name in self.served}

    # The EngineClient protocol.

    def submit(self, request: GenerateRequest) -> _Stream:  # type: ignore[override]
        if self.submit_error is not None:
            raise self.submit_error
        if request.model not in self.served:
            raise UnknownModel(f"the model {request.model!r} is not served here", param="model")
        status = self._statuses[request.model]
        if self.stopped:
            raise Draining("the server is shutting down; send the request elsewhere")
        if status.phase is Phase.DRAINING:
            raise ModelUnloading(f"{request.model} is being unloaded")
        if status.phase is not Phase.READY:
            raise ModelNotReady(f"{request.model} is {status.phase}; try again later")
        self.requests.append(request)
        stream = _Stream(self, request, num_open=request.sampling.n)
        self.live[request.request_id] = stream
        stream.task = asyncio.get_running_loop().create_task(self._write(stream, self.failure))
        return stream

    def models(self) -> list[Info]:
        ready = [name for name, status in self._statuses.items() if status.phase is Phase.READY]
        return [info for info in self.served.values() if info.model in ready]

    def statuses(self) -> list[ModelStatus]:
        return list(self._statuses.values())

    def stats(self, model: str) -> Stats | None:
        return self._stats.get(model)

    def config(self, model: str) -> EngineConfig | None:
        if model not in self._statuses:
            return None
        spec = self.specs.get(model)
        return self.config_of_server if spec is None else spec.config(self.config_of_server)

    def load(self, spec: ModelSpec) -> "asyncio.Task[Info]":
        status = self._statuses.get(spec.name)
        if status is not None and status.phase is not Phase.FAILED:
            raise ModelConflict(f"{spec.name} is {status.phase} already", param="model")
        self.specs[spec.name] = spec
        self._statuses[spec.name] = ModelStatus(
            model=spec.name, phase=Phase.LOADING, progress=0.5, joining=True
        )
        return asyncio.get_running_loop().create_task(self._load(spec))

    def unload(self, model: str, drain_timeout_s: float) -> "asyncio.Task[None]":
        if model not in self._statuses:
            raise UnknownModel(f"the model {model!r} is not served here", param="model")
        if self._statuses[model].phase is Phase.DRAINING:
            raise ModelConflict(f"{model} is already being unloaded", param="model")
        self.set_status(model, Phase.DRAINING)
        return asyncio.get_running_loop().create_task(self._unload(model, drain_timeout_s))

    def load_adapter(self, model: str, order: AdapterOrder) -> "asyncio.Future[AdapterReport]":
        info = self.served[model]
        info.with_adapter(order.name)
        if order.name in info.names and not order.replaces:
            raise ModelConflict(f"{order.name} is served already", param="lora_name")
        self.adapter_orders.append(order)
        return asyncio.get_running_loop().create_task(self._load_adapter(model, order))

    def unload_adapter(
        self, model: str, name: str, drain_timeout_s: float
    ) -> "asyncio.Future[None]":
        info = self.served[model]
        if name == model or name not in info.names:
            raise UnknownAdapter(f"{model} has no adapter {name}", param="lora_name")
        self.served[model] = info.without_adapter(name)
        return asyncio.get_running_loop().create_task(self._unload_adapter(model, name))

    async def start(self) -> None:
        self.started = True

    async def stop(self, drain_timeout_s: float) -> None:
        self.stopped = True
        self.stop_timeouts.append(drain_timeout_s)
        tasks = [stream.task for stream in self.live.values() if stream.task is not None]
        if tasks and drain_timeout_s > 0:
            await asyncio.wait(tasks, timeout=drain_timeout_s)
        self._end_all("the engine was stopped with the request in it")
        for name in self._statuses:
            self.set_status(name, Phase.STOPPED)

    async def _load(self, spec: ModelSpec) -> Info:
        await self.may_change.wait()
        if self.load_error is not None:
            self._forget(spec.name)
            raise self.load_error
        info = self.make_info(spec)
        self.serve(info)
        return info

    async def _unload(self, model: str, drain_timeout_s: float) -> None:
        live = [s for s in self.live.values() if s.request.model == model]
        tasks = [stream.task for stream in live if stream.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=drain_timeout_s)
        await self.may_change.wait()
        self._end_all("the model was unloaded", model)
        self._forget(model)

    async def _load_adapter(self, model: str, order: AdapterOrder) -> AdapterReport:
        await self.may_change.wait()
        if self.load_error is not None:
            raise self.load_error
        self.served[model] = self.served[model].with_adapter(order.name)
        return AdapterReport(num_layers=14, ranks=(4, 8), num_left_out=1, left_out=("vision.fc",))

    async def _unload_adapter(self, model: str, name: str) -> None:
        live = [s for s in self.live.values() if s.request.adapter == name]
        tasks = [stream.task for stream in live if stream.task is not None]
        if tasks:
            await asyncio.wait(tasks)
        await self.may_change.wait()

    def _forget(self, model: str) -> None:
        info = self.served.pop(model, None)
        del self._statuses[model]
        self.specs.pop(model, None)
        self._stats.pop(model, None)
        if self.on_gone is not None:
            self.on_gone(model, None if info is None else info.path)

    # What a test does to it.

    def serve(self, info: Info) -> None:
        """Serve one more model, which is ready."""
        self.served[info.model] = info
        self._statuses[info.model] = ModelStatus(model=info.model, phase=Phase.READY)

    def set_status(self, model: str, phase: Phase, **changes: object) -> None:
        """Move one model to a phase; `changes` are further fields of `ModelStatus`."""
        fresh = ModelStatus(model=model, phase=phase, restarts=self._statuses[model].restarts)
        self._statuses[model] = replace(fresh, **changes)  # type: ignore[arg-type]

    def hold(self) -> None:
        """Write no more events until `release`."""
        self._may_write.clear()

    def release(self) -> None:
        self._may_write.set()

    def die(self, model: str | None = None) -> None:
        """End the worker process: live streams raise EngineDead, and the model restarts."""
        self._end_all("the engine process ended unexpectedly", model)
        for name, status in list(self._statuses.items()):
            if model in (None, name):
                self.set_status(name, Phase.RESTARTING, restarts=status.restarts + 1)

    def revive(self) -> None:
        for name in self._statuses:
            self.set_status(name, Phase.READY)

    def publish(self, model: str, stats: Stats) -> None:
        """Report a step."""
        self._stats[model] = stats
        self.steps.tell(model, stats)

    # How it writes.

    @staticmethod
    def _as_reply(reply: Reply | Sequence[int] | None) -> Reply:
        if reply is None:
            return pure_reply
        if callable(reply):
            return reply
        tokens = list(reply)
        return lambda request, index: tokens

    async def _write(self, stream: _Stream, failure: Failure | None) -> None:
        request = stream.request
        streams = [_EventWriter(self, request, i, failure) for i in range(request.sampling.n)]
        await asyncio.sleep(self.first_delay_s)
        while streams:
            for events in list(streams):
                await asyncio.sleep(self.delay_s)
                await self._may_write.wait()
                if events.index in stream.ended:
                    streams.remove(events)
                    continue
                event = next(events)
                stream.queue.put_nowait(event)
                if event.finish_reason is not None:
                    stream.ended.add(events.index)
                    streams.remove(events)
                self._account(request.model, len(event.token_ids))
        self.live.pop(request.request_id, None)

    def _account(self, model: str, num_tokens: int) -> None:
        before: Any = self._stats.get(model, EngineStats(kv_blocks_total=64, kv_block_size=16))
        num_running = sum(s.request.sampling.n for s in self.live.values())
        self.publish(
            model,
            replace(
                before,
                num_running=num_running,
                num_steps=before.num_steps + 1,
                step_tokens=num_tokens,
            ),
        )

    def _end_all(self, message: str, model: str | None = None) -> None:
        for request_id, stream in list(self.live.items()):
            if model in (None, stream.request.model):
                if stream.task is not None:
                    stream.task.cancel()
                stream.queue.put_nowait(EngineDead(message))
                del self.live[request_id]


class _EventWriter:
    """Cuts one completion's reply into events, the way the scheduler would end it."""

    def __init__(
        self,
        engine: FakeEngineClient,
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
