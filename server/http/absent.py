"""What other servers have and this one has not, by the beginning of the path, with the way here."""

from collections.abc import Mapping

_NO_STORE = "send the earlier messages again, or previous_response_id to /v1/responses"
_LIBRARY = "models are loaded with POST /models/load and unloaded with POST /models/unload"
_MANY = "send the requests one by one, many at a time if you like"

_INSTEAD: Mapping[str, str] = {
    "/v1/conversations": f"conversations are not kept here; {_NO_STORE}",
    "/v1/threads": f"threads are not kept here; {_NO_STORE}",
    "/v1/assistants": "assistants are not kept here; send instructions and tools to /v1/responses",
    "/v1/messages/batches": f"batches are not taken here; {_MANY}, to /v1/messages",
    "/v1/batches": f"batches are not taken here; {_MANY}",
    "/v1/files": "files are not kept here; send what is in them within the request",
    "/v1/moderations": "no model for moderation is served here; to sort texts, ask "
    "/v1/chat/completions with structured_outputs and choice",
    "/v1/audio": "no model for sound is served here",
    "/v1/fine_tuning": "training is not done by the server; see tandem train, and load the result "
    "with POST /v1/load_lora_adapter",
    "/server_info": "see GET /v1/models, GET /ready and GET /metrics",
    "/get_server_info": "see GET /v1/models, GET /ready and GET /metrics",
    "/generate": "ask /completion, or /v1/completions",
    "/sdapi/v1/system-info": "see GET /metrics",
    "/sdapi/v1/skip": "one image of a request cannot be skipped here; POST /sdapi/v1/interrupt "
    "cancels the request",
    "/sdapi/v1/unload-checkpoint": _LIBRARY,
    "/sdapi/v1/reload-checkpoint": _LIBRARY,
    "/api/create": f"models are not made here; {_LIBRARY}",
    "/api/copy": f"models are not copied here; {_LIBRARY}",
    "/api/delete": f"models are not deleted here; {_LIBRARY}",
    "/api/push": "models are not published from here",
    "/api/blobs": "files are not kept here",
}


def not_found(path: str) -> str:
    """What to say of a path that nothing is at."""
    for start, instead in _INSTEAD.items():
        if path == start or path.startswith(f"{start}/"):
            return f"there is no {start} on this server: {instead}"
    return "there is no such route; see /docs"
