"""Handles unexpected exceptions during a request.

Such an exception is logged once, under a reference that the client also gets, and ends only that
request. A poisoned device is different: after some CUDA errors every later call fails, so the
worker must end and be restarted.
"""

import contextlib
import re
import secrets
import sys
from collections.abc import Iterator

import structlog

from engine.errors import (
    CapacityError,
    EngineError,
    InsufficientMemory,
    InternalError,
    RequestFailed,
)

_DEVICE_ERRORS = re.compile(
    r"CUDA error|cudaError|CUDA driver error|Triton Error \[CUDA\]"
    r"|CUBLAS_STATUS_|CUDNN_STATUS_|device-side assert"
)

log = structlog.get_logger(__name__)


class Unusable(Exception):
    """A request's result cannot be given to the client; the text says why and may be shown to
    clients."""


def answer_for(error: BaseException, request_id: str) -> EngineError:
    """The error that the client of a failed request gets.

    Errors that the request caused, or a lack of capacity, are returned unchanged. Anything else is
    logged with its traceback.

    Raises:
        BaseException: the error itself, when the device is poisoned.
    """
    if isinstance(error, EngineError) and not isinstance(error, InternalError):
        return error
    if isinstance(error, Unusable):
        return failed_row(str(error), request_id)
    raise_if_poisoned(error)
    reference = secrets.token_hex(6)
    is_memory = is_out_of_memory(error)
    log.error(
        "out of memory for a request" if is_memory else "a request failed",
        reference=reference,
        request_id=request_id,
        error=type(error).__name__,
        exc_info=error,
    )
    if is_memory:
        return CapacityError(
            f"the device ran out of memory for this request; make it smaller or try again later; "
            f"the server's log has the details under reference {reference}"
        )
    return failure(reference)


def failed_row(reason: str, request_id: str) -> EngineError:
    """The error for a request whose result is unusable although nothing was raised."""
    reference = secrets.token_hex(6)
    log.error("a request failed", reference=reference, request_id=request_id, error=reason)
    return failure(reference, reason)


def failure(reference: str, reason: str = "an internal error ended this request") -> RequestFailed:
    return RequestFailed(f"{reason}; the server's log has the details under reference {reference}")


def raise_if_poisoned(error: BaseException) -> None:
    """Raise a device's error again if the device does not answer any more.

    Raises:
        BaseException: the error itself.
    """
    if names_device(error) and not _device_answers():
        raise error


def names_device(error: BaseException) -> bool:
    """Whether CUDA or a library on top of it reported the error."""
    is_accelerator = any(kind.__name__ == "AcceleratorError" for kind in type(error).__mro__)
    return is_accelerator or bool(_DEVICE_ERRORS.search(str(error)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; on a CPU torch has no error type for that."""
    is_torch = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    return is_torch or isinstance(error, MemoryError) or "allocate memory" in str(error)


@contextlib.contextmanager
def sizes_within_memory() -> Iterator[None]:
    """A context in which a model is built and filled with the sizes of its configuration.

    Raises:
        InsufficientMemory: an allocation failed.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InsufficientMemory(
            "the sizes in the model's configuration need more memory than this machine has; use a "
            "smaller model, or fetch its configuration again if its files are small"
        ) from error


def _device_answers() -> bool:
    """Whether a GPU still computes. Most errors that poison it make every later call fail; some,
    such as a launch with bad arguments, do no harm."""
    # Not imported, as this module also serves processes without torch, which have no device.
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
        return bool(torch.ones(2, device="cuda").sum().item() == 2)
    except Exception:
        return False
