"""Holds a model with a text side back until that was seen to work.

The server tries tokenizer and chat template while the worker still loads weights: they are the
server's to use, and what is wrong with them is known before the weights are in.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from engine.errors import EngineError, Failure, ModelLoadError
from engine.types import Info

TextCheck = Callable[[str], Awaitable[int]]
"""Given the place of a checkpoint, tries its text side, and returns the highest token id met.

Raises ModelLoadError when prompts for this model cannot be made.
"""

log = structlog.get_logger(__name__)


class TextGate:
    """One worker's. The model passes once it is loaded and its text side, if it has one, has been
    tried.

    Args:
        check: tries the text side.
        on_pass: called with the model that may now be served.
        on_failure: called at most once, with what is wrong, perhaps before the model is loaded.
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
        """The checkpoint is on this machine."""
        self._task = asyncio.ensure_future(self._check(path))
        self._task.add_done_callback(self._end_check)

    def loaded(self, info: Info) -> None:
        """Take note that the worker has loaded its model."""
        self._info = info
        self._try_to_pass()

    def close(self) -> None:
        """The worker is gone: nothing is called any more."""
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
            log.error("the text side cannot be read", exc_info=error)
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
            f"the tokenizer gives token id {highest}, the model ends at {info.vocab_size - 1}: "
            f"they do not belong together; fetch the tokenizer's files of this model"
        )
        self._on_failure(Failure(ModelLoadError.code, reason))


def _succeeded(task: asyncio.Future[int]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
