"""Steps over whole inputs: `EmbeddingEngine`.

A step takes as many waiting inputs as fit into its token budget, embeds them in one forward pass
and answers them. Requests take turns of one input each and queue again after each turn, so a
request with a thousand inputs does not hold up one with a single input.
"""

import itertools
import time
from collections import deque
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.contract.embed import EmbeddingEvent, EmbeddingRequest, EmbeddingStats
from engine.contract.rejection import rejection
from engine.contract.request import FinishReason
from engine.contract.settings import Policy
from engine.errors import EngineError, InvalidParameter, QueueFull
from engine.models.sentence_encoder import Embedder
from engine.runtime.fault import answer_for, failed_row
from engine.scheduling.policy import create_policy
from engine.scheduling.queue import WaitingQueue


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingLimits:
    """The limits of the engine."""

    max_model_len: int
    """The most tokens of an input."""
    vocab_size: int
    dimensions: int
    normalizes: bool
    """Whether embeddings are scaled to length 1."""
    max_num_seqs: int
    """The most inputs of a step."""
    max_num_batched_tokens: int
    """The most tokens of a step, unless a single input has more."""
    max_num_queued: int
    """The most inputs that may wait, unless a single request has more."""
    scheduling_policy: Policy = "fcfs"


@dataclass(slots=True, eq=False)
class _Waiting:
    """A request with inputs left."""

    rank: tuple[int, ...]
    """The rank of the request's next turn."""
    request: EmbeddingRequest
    left: deque[int]
    """Indices of the inputs that no step has taken yet."""
    is_new: bool = True
    """Whether none of the inputs has been in a step."""


@dataclass(frozen=True, slots=True)
class _Input:
    """One input in a step."""

    request: EmbeddingRequest
    index: int
    queue_time_s: float | None

    @property
    def token_ids(self) -> list[int]:
        return self.request.inputs[self.index]


class EmbeddingEngine:
    """A `engine.worker.stepping.SteppingEngine` for embeddings."""

    def __init__(self, model: Embedder, limits: EmbeddingLimits) -> None:
        self._model = model
        self._limits = limits
        self._policy = create_policy(limits.scheduling_policy)
        self._waiting: WaitingQueue[_Waiting] = self._policy.create_queue()
        self._turns = itertools.count()
        self._stats = EmbeddingStats()

    def add(self, request: EmbeddingRequest) -> None:
        """Queue a request.

        Raises:
            InvalidParameter: the model cannot take the inputs or dimensions.
            QueueFull: the queue has no room for more inputs.
        """
        self._check(request)
        num_waiting = self._num_waiting()
        if num_waiting and num_waiting + len(request.inputs) > self._limits.max_num_queued:
            raise QueueFull(
                f"{num_waiting} inputs are waiting and this request has {len(request.inputs)} "
                f"more; the limit is {self._limits.max_num_queued}; try again later"
            )
        left = deque(range(len(request.inputs)))
        self._waiting.push(_Waiting(self._next_rank(request), request, left))

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Drop a request's waiting inputs. Unknown ids are ignored, and so are calls for a single
        input."""
        if index is not None:
            return
        for waiting in [w for w in self._waiting if w.request.request_id == request_id]:
            self._waiting.remove(waiting)

    def has_work(self) -> bool:
        """Whether inputs wait."""
        return bool(self._waiting)

    def step(self) -> tuple[list[EmbeddingEvent], EmbeddingStats]:
        """Embed the inputs whose turn it is."""
        started_s = time.perf_counter()
        inputs = self._schedule()
        events = self._answer(inputs)
        num_tokens = sum(len(one.token_ids) for one in inputs)
        before = self._stats
        self._stats = replace(
            before,
            num_steps=before.num_steps + 1,
            num_tokens=before.num_tokens + num_tokens,
            step_inputs=len(inputs),
            step_tokens=num_tokens,
            step_time_s=time.perf_counter() - started_s,
        )
        return events, self.stats()

    def stats(self) -> EmbeddingStats:
        """Statistics as of now."""
        running = self._stats.step_inputs if self._waiting else 0
        return replace(self._stats, num_running=running, num_waiting=self._num_waiting())

    def reset_totals(self) -> None:
        """Reset the totals, for example after a trial step."""
        self._stats = EmbeddingStats()

    def shutdown(self) -> None:
        """Do nothing, since nothing is held besides the model."""

    def _num_waiting(self) -> int:
        return sum(len(one.left) for one in self._waiting)

    def _next_rank(self, request: EmbeddingRequest) -> tuple[int, ...]:
        return self._policy.rank(request, next(self._turns))

    def _check(self, request: EmbeddingRequest) -> None:
        limits = self._limits
        if request.dimensions is not None and not 1 <= request.dimensions <= limits.dimensions:
            raise InvalidParameter(
                f"dimensions is {request.dimensions}; it must be from 1 to {limits.dimensions} for "
                f"this model",
                param="dimensions",
            )
        for index, token_ids in enumerate(request.inputs):
            if not 1 <= len(token_ids) <= limits.max_model_len:
                raise InvalidParameter(
                    f"input[{index}] has {len(token_ids)} tokens; it must have from 1 to "
                    f"{limits.max_model_len}",
                    param="input",
                )
            if not 0 <= min(token_ids) <= max(token_ids) < limits.vocab_size:
                raise InvalidParameter(
                    f"input[{index}] has a token id outside the vocabulary; ids go from 0 to "
                    f"{limits.vocab_size - 1}",
                    param="input",
                )

    def _schedule(self) -> list[_Input]:
        """Choose the inputs of the next step: one input of each request in turn, less important
        requests last, until an input does not fit."""
        limits = self._limits
        chosen: list[_Input] = []
        num_tokens = 0
        while self._waiting and len(chosen) < limits.max_num_seqs:
            waiting = self._waiting.peek()
            request = waiting.request
            num_tokens += len(request.inputs[waiting.left[0]])
            if chosen and num_tokens > limits.max_num_batched_tokens:
                break  # its turn comes first in the next step
            self._waiting.pop()
            chosen.append(self._take(waiting))
            if waiting.left:
                waiting.rank = self._next_rank(request)
                self._waiting.push(waiting)
        return chosen

    def _take(self, waiting: _Waiting) -> _Input:
        queue_time_s = None
        if waiting.is_new:
            waiting.is_new = False
            queue_time_s = max(0.0, time.time() - waiting.request.arrival_time_s)
        return _Input(waiting.request, waiting.left.popleft(), queue_time_s)

    def _answer(self, inputs: list[_Input]) -> list[EmbeddingEvent]:
        """Return one event per input. Inputs that fail together are tried one by one, so that an
        input's failure affects no other."""
        try:
            embedded = self._model.embed([one.token_ids for one in inputs]).cpu()
            finite = embedded.isfinite().all(1).tolist()
            return [
                self._event(one, row) if is_finite else _unusable(one)
                for one, row, is_finite in zip(inputs, embedded, finite, strict=True)
            ]
        except Exception as error:
            if len(inputs) == 1:
                return [_failed(inputs[0], answer_for(error, inputs[0].request.request_id))]
        return [event for one in inputs for event in self._answer([one])]

    def _event(self, one: _Input, row: Tensor) -> EmbeddingEvent:
        return EmbeddingEvent(
            request_id=one.request.request_id,
            index=one.index,
            embedding=self._bytes(row[: one.request.dimensions]),
            queue_time_s=one.queue_time_s,
            finish_reason=FinishReason.STOP,
        )

    def _bytes(self, row: Tensor) -> bytes:
        if self._limits.normalizes:
            # As in sentence-transformers, an embedding of length 0 stays as it is.
            row = torch.nn.functional.normalize(row, dim=0)
        data: bytes = row.numpy().astype("<f4").tobytes()
        return data


def _unusable(one: _Input) -> EmbeddingEvent:
    reason = "the embedding has numbers that are not finite"
    return _failed(one, failed_row(reason, one.request.request_id))


def _failed(one: _Input, error: EngineError) -> EmbeddingEvent:
    [event] = rejection(one.request, error, [one.index])
    return event
