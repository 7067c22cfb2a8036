"""Routes of other servers that this one lacks, by the beginning of their path, with what to use
instead."""

from collections.abc import Mapping

_LIBRARY = "models are loaded with POST /models/load and unloaded with POST /models/unload"
_MANY = "send the requests one by one; many may run at a time"

_INSTEAD: Mapping[str, str] = {
    "/v1/threads": "threads are not kept here; use /v1/conversations",
    "/v1/assistants": "assistants are not kept here; send instructions and tools to /v1/responses",
    "/v1/messages/batches": f"batches are not accepted here; {_MANY}, to /v1/messages",
    "/v1/batches": f"batches are not accepted here; {_MANY}",
    "/v1/files": "files are not kept here; send their contents within the request",
    "/v1/moderations": (
        "no moderation model is served here; to sort texts, ask /v1/chat/completions with "
        "structured_outputs and choice"
    ),
    "/v1/audio": "no audio model is served here",
    "/v1/fine_tuning": (
        "the server does not train; use the command tandem lora-train, and load the result with "
        "POST /v1/load_lora_adapter"
    ),
    "/generate": "use /completion or /v1/completions",
    "/sdapi/v1/system-info": "see GET /metrics",
    "/sdapi/v1/skip": (
        "a single image of a request cannot be skipped here; POST /sdapi/v1/interrupt cancels "
        "the request"
    ),
    "/sdapi/v1/unload-checkpoint": _LIBRARY,
    "/sdapi/v1/reload-checkpoint": _LIBRARY,
    "/api/create": f"models are not created here; {_LIBRARY}",
    "/api/copy": f"models are not copied here; {_LIBRARY}",
    "/api/delete": f"models are not deleted here; {_LIBRARY}",
    "/api/push": "models are not published from here",
    "/api/blobs": "files are not kept here",
}


def not_found(path: str) -> str:
    """The message for a path without a route."""
    for start, instead in _INSTEAD.items():
        if path == start or path.startswith(f"{start}/"):
            return f"there is no {start} on this server: {instead}"
    return "there is no such route; see /docs"
