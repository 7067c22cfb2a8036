"""Holds back a model with a text side until that side is known to work.

The server tries tokenizer and chat template while the worker still loads weights, because the
server uses them; their faults are known before the weights are loaded.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from engine.contract.request import Info
from engine.errors import EngineError, Failure, ModelLoadError

TextCheck = Callable[[str], Awaitable[int]]
"""Tries the text side of a checkpoint, given its path, and returns the highest token id found.

Raises ModelLoadError if prompts for this model cannot be made.
"""

log = structlog.get_logger(__name__)


class TextGate:
    """The gate of one worker. The model passes when it is loaded and its text side, if it has one,
    has been tried.

    Args:
        check: tries the text side.
        on_pass: called with the model that may be served now.
        on_failure: called at most once, with the failure, possibly before the model is loaded.
    """

    def __init__(
        self,
        check: TextCheck,
        on_pass: Callable[[Info], None],
        on_failure: Callable[[Failure], None],
    ) -> None:
        self._check = check
        self._on_pass = on_pass
        self._on_failure = on_failure
        self._task: asyncio.Future[int] | None = None
        self._info: Info | None = None

    def found(self, path: str) -> None:
        """Note that the checkpoint is on this machine."""
        self._task = asyncio.ensure_future(self._check(path))
        self._task.add_done_callback(self._end_check)

    def loaded(self, info: Info) -> None:
        """Note that the worker has loaded its model."""
        self._info = info
        self._try_to_pass()

    def close(self) -> None:
        """Call nothing any more, as the worker is gone."""
        if self._task is not None:
            self._task.remove_done_callback(self._end_check)
            self._task.cancel()

    def _end_check(self, task: asyncio.Future[int]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._try_to_pass()
        elif isinstance(error, EngineError):
            self._on_failure(Failure.of(error))
        else:
            log.error("the tokenizer's files cannot be read", exc_info=error)
            reason = (
                f"the tokenizer's files cannot be read ({type(error).__name__}); fetch them again"
            )
            self._on_failure(Failure(ModelLoadError.code, reason))

    def _try_to_pass(self) -> None:
        info, task = self._info, self._task
        if info is None or (task is not None and not _succeeded(task)):
            return
        highest = task.result() if task is not None else 0
        if info.vocab_size is None or highest < info.vocab_size:
            self._on_pass(info)
            return
        reason = (
            f"the tokenizer has token id {highest} and the model's highest is "
            f"{info.vocab_size - 1}: they do not belong together; fetch this model's tokenizer"
        )
        self._on_failure(Failure(ModelLoadError.code, reason))


def _succeeded(task: asyncio.Future[int]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
