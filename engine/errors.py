"""Every failure that the engine tells its callers about.

    EngineError                     code
    ├─ RequestError                 the caller's fault; never retry unchanged
    │  ├─ InvalidParameter          a field has a bad value (names the field)
    │  ├─ ContextLengthExceeded     prompt plus requested tokens do not fit
    │  ├─ UnknownModel              no such model is served
    │  ├─ UnknownAdapter            no such LoRA adapter is loaded
    │  ├─ UnknownResponse           no such response is kept
    │  ├─ UnknownConversation       no such conversation, or item of one, is kept
    │  ├─ ModelConflict             the model's state does not allow this load or unload
    │  ├─ NotAllowed                the operator does not allow it
    │  └─ UnsupportedFeature        a known field that this server does not support
    ├─ CapacityError                try later
    │  ├─ QueueFull                 the queue of requests is full
    │  ├─ Draining                  the server is shutting down
    │  ├─ ModelNotReady             the model is still loading, or failed to load
    │  ├─ ModelUnloading            the model is being unloaded
    │  ├─ TooManyModels             no more models may be loaded
    │  ├─ TooManyAdapters           no more LoRA adapters may be loaded
    │  └─ OutOfBlocks               one request needs more KV blocks than the pool has
    ├─ RequestAborted               the client left, or asked for the abort
    ├─ ModelLoadError               start-up
    │  ├─ ModelNotFound             the hub id, folder or file does not exist
    │  ├─ UnsupportedArchitecture   names the nearest supported ones
    │  ├─ MissingWeight             the checkpoint lacks a tensor
    │  ├─ ShapeMismatch             a tensor has another shape than the config says
    │  ├─ CorruptFile               truncated, wrong checksum, not the claimed format
    │  └─ InsufficientMemory        weights and KV cache do not fit the budget
    └─ InternalError                our fault
       ├─ EngineDead                the worker process ended with the request in it
       ├─ RequestFailed             one request failed; the message names its line in the log
       ├─ ChatTemplateFailed        the process of a model's chat template ended
       └─ InvariantViolation        a check of our own failed

Messages say what was asked, the limit, and the fix; they never hold prompts or file paths of the
serving machine, because they reach the client. HTTP status codes live in `server/http/errors.py`
alone.
"""

from dataclasses import dataclass
from typing import Self


class EngineError(Exception):
    """The base of all errors here. `code` is stable and machine-readable; `str(error)` is for
    people."""

    code: str = "engine_error"
    retry_after_s: int | None = None
    """When to try again, if that is known."""
    hint: str | None = None
    """More for the operator, on the terminal and in the log; it may name paths."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class RequestError(EngineError):
    code = "invalid_request"


class InvalidParameter(RequestError):
    code = "invalid_value"


@dataclass(frozen=True, slots=True)
class Overflow:
    """How far a request exceeds a context; the prompt's number of tokens may be a lower bound."""

    num_prompt_tokens: int
    num_asked_tokens: int
    max_model_len: int


class ContextLengthExceeded(RequestError):
    code = "context_length_exceeded"
    overflow: Overflow | None = None
    """The numbers of prompt and answer, for dialects that write their own message."""

    @classmethod
    def beyond(cls, max_model_len: int, however: str, *, param: str) -> Self:
        """An error that clients recognise by its text in order to fall back to another model:
        LiteLLM by OpenAI's opening words, LangChain by the code. `however` continues the text and
        names the fix."""
        limit = f"This model's maximum context length is {max_model_len} tokens."
        return cls(f"{limit} However, {however} ({cls.code})", param=param)


class UnknownModel(RequestError):
    code = "model_not_found"


class UnknownAdapter(RequestError):
    code = "adapter_not_found"


class UnknownResponse(RequestError):
    code = "response_not_found"


class UnknownConversation(RequestError):
    code = "conversation_not_found"


class ModelConflict(RequestError):
    code = "model_conflict"


class NotAllowed(RequestError):
    code = "not_allowed"


class UnsupportedFeature(RequestError):
    code = "unsupported_feature"


class CapacityError(EngineError):
    code = "over_capacity"


class QueueFull(CapacityError):
    code = "queue_full"


class Draining(CapacityError):
    code = "draining"


class ModelNotReady(CapacityError):
    code = "model_not_ready"


class ModelUnloading(CapacityError):
    code = "model_unloading"


class TooManyModels(CapacityError):
    code = "too_many_models"


class TooManyAdapters(CapacityError):
    code = "too_many_adapters"


class OutOfBlocks(CapacityError):
    code = "out_of_kv_blocks"


class RequestAborted(EngineError):
    code = "request_aborted"


class ModelLoadError(EngineError):
    code = "model_load_failed"


class ModelNotFound(ModelLoadError):
    code = "model_source_not_found"


class UnsupportedArchitecture(ModelLoadError):
    code = "unsupported_architecture"


class MissingWeight(ModelLoadError):
    code = "missing_weight"


class ShapeMismatch(ModelLoadError):
    code = "shape_mismatch"


class CorruptFile(ModelLoadError):
    code = "corrupt_file"


class InsufficientMemory(ModelLoadError):
    code = "insufficient_memory"


class InternalError(EngineError):
    code = "internal_error"


class EngineDead(InternalError):
    code = "engine_dead"


class RequestFailed(InternalError):
    code = "request_failed"


class ChatTemplateFailed(InternalError):
    code = "chat_template_failed"


class InvariantViolation(InternalError):
    code = "invariant_violation"


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as a value, in which form it crosses process borders in events and messages."""

    code: str
    message: str
    param: str | None = None
    hint: str | None = None

    @classmethod
    def of(cls, error: EngineError) -> Self:
        return cls(error.code, error.message, error.param, error.hint)

    def error(self) -> EngineError:
        """The error that this value was made from; an unknown code becomes an `InternalError`."""
        error = _BY_CODE.get(self.code, InternalError)(self.message, param=self.param)
        error.hint = self.hint
        return error


def all_error_types(root: type[EngineError] = EngineError) -> list[type[EngineError]]:
    """All error types, parents before children."""
    types = [root]
    for child in root.__subclasses__():
        types += all_error_types(child)
    return types


_BY_CODE = {error.code: error for error in all_error_types()}
