"""Requests in flight that can be listed and cancelled, by the id of their answer or by their
`X-Request-Id`.
"""

import time
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakValueDictionary

from starlette.requests import Request

from engine.contract.kinds import kind_for
from engine.contract.operations import AnyOperation
from server.http.owner import Owner, owner_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a request is. None stands for what its kind does not count.

    Attributes:
        fraction: share of the work that is done, 0 to 1.
        operation: what is done now, if a request may have several stages.
        stage: number of that stage.
    """

    is_begun: bool
    num_results: int
    num_finished: int
    num_prompt_tokens: int | None = None
    num_generated_tokens: int | None = None
    fraction: float | None = None
    operation: str | None = None
    stage: int | None = None

    @property
    def is_over(self) -> bool:
        """Whether only the answer is still to be sent."""
        return self.num_finished == self.num_results


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """How a request is found and shown.

    Attributes:
        id: the id of its answer.
        request_id: its `X-Request-Id`, which other requests may have, too.
    """

    id: str
    request_id: str
    kind: str
    model: str
    created: int
    owner: Owner | None


class LiveRun(Protocol):
    """The engine's side of such a request. `label` is set once the request was added."""

    id: str
    label: Label | None

    @property
    def is_open(self) -> bool:
        """Whether nobody has closed the run."""
        ...

    def progress(self) -> Progress: ...

    async def cancel(self) -> None:
        """End the request in the engine; its reply ends with `RequestAborted`. Idempotent."""
        ...


class LiveRequests:
    """The live requests of all models. Whoever runs a request holds it: if that is dropped without
    an end, as when a client leaves before its response starts, it is forgotten here, too. Event
    loop only."""

    def __init__(self) -> None:
        self._runs: WeakValueDictionary[str, LiveRun] = WeakValueDictionary()

    def add(self, run: LiveRun, request: Request, *, operation: AnyOperation, model: str) -> None:
        """List a request that the engine has, or is about to get."""
        run.label = Label(
            id=run.id,
            request_id=request.state.request_id,
            kind=kind_for(operation).name,
            model=model,
            created=int(time.time()),
            owner=owner_of(request),
        )
        self._runs[run.id] = run

    def of(self, owner: Owner | None, name: str | None = None) -> list[tuple[Label, LiveRun]]:
        """An owner's requests, the oldest first: all, or those with that id or `X-Request-Id`."""
        return [
            (label, run)
            for label, run in self.all()
            if label.owner == owner and name in (None, label.id, label.request_id)
        ]

    def all(self) -> list[tuple[Label, LiveRun]]:
        """The requests of all owners, the oldest first."""
        return [
            (run.label, run)
            for run in list(self._runs.values())
            if run.label is not None and run.is_open and not run.progress().is_over
        ]
