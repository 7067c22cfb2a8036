"""What becomes of an exception that nobody expected while a request was served.

It is logged once, under a reference that the client gets as well, and ends that request alone. The
one exception is a poisoned device: after some CUDA errors every later call fails, so the worker has
to end and be started again.
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
    """What a request came to cannot be given to the client; the text says why, and is fit for
    clients."""


def answer_for(error: BaseException, request_id: str) -> EngineError:
    """What the client of the request that failed is told.

    What the request itself is to blame for, or a lack of room, is an answer already. Anything else
    is logged with its traceback.

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
    """The same for a request whose result was found unusable, without an exception."""
    reference = secrets.token_hex(6)
    log.error("a request failed", reference=reference, request_id=request_id, error=reason)
    return failure(reference, reason)


def failure(reference: str, reason: str = "an internal error ended this request") -> RequestFailed:
    return RequestFailed(f"{reason}; the server's log has the details under reference {reference}")


def raise_if_poisoned(error: BaseException) -> None:
    """
    Raises:
        BaseException: the error itself, if it comes from the device and the device does not answer
            any more.
    """
    if names_device(error) and not _device_answers():
        raise error


def names_device(error: BaseException) -> bool:
    """Whether it is an error that CUDA or a library above it reported."""
    is_accelerator = any(kind.__name__ == "AcceleratorError" for kind in type(error).__mro__)
    return is_accelerator or bool(_DEVICE_ERRORS.search(str(error)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; torch has no type of its own for that on a CPU."""
    is_torch = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    return is_torch or isinstance(error, MemoryError) or "allocate memory" in str(error)


@contextlib.contextmanager
def sizes_within_memory() -> Iterator[None]:
    """Where a model is built and filled by the sizes of its configuration.

    Raises:
        InsufficientMemory: an allocation failed.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InsufficientMemory(
            "the sizes in the model's configuration need more memory than there is; use a smaller "
            "model, or fetch its configuration again if its files are small"
        ) from error


def _device_answers() -> bool:
    """Whether a GPU still computes. Most errors that poison it fail every later call; some, such as
    a launch with bad arguments, harm nothing."""
    # Not imported: this module serves processes without torch, and there is no device in those.
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
        return bool(torch.ones(2, device="cuda").sum().item() == 2)
    except Exception:
        return False
