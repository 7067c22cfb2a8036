"""The state of a model in llama-server's words."""

from engine.contract.status import Phase
from server.models.library import LibraryEntry
from server.protocol.model_loading import LoadStatus

VALUES = {
    Phase.READY: "loaded",
    Phase.DOWNLOADING: "downloading",
    Phase.DRAINING: "unloading",
    Phase.SLEEPING: "sleeping",
    Phase.FAILED: "unloaded",
    Phase.STOPPED: "unloaded",
}
"""llama-server's names of phases; all other phases are its `loading`."""


def status_of(entry: LibraryEntry) -> LoadStatus:
    status = entry.status
    if status is None:
        failure = entry.failure
        value, phase, progress = "unloaded", None, None
        detail, pinned = None if failure is None else failure.message, False
    else:
        failure = status.failure
        pinned = status.pinned
        value, phase = VALUES.get(status.phase, "loading"), status.phase.value
        progress, detail = status.progress, status.news
    return LoadStatus(
        value=value,  # type: ignore[arg-type]  # the table's values are its
        failed=failure is not None,
        pinned=pinned,
        phase=phase,
        progress=progress,
        detail=detail,
        error_code=None if failure is None else failure.code,
    )
