"""The state of a served model."""

from dataclasses import dataclass
from enum import StrEnum

from engine.errors import Failure


class Phase(StrEnum):
    """The state of a served model."""

    STARTING = "starting"
    DOWNLOADING = "downloading"
    LOADING = "loading"
    WARMING_UP = "warming_up"
    READY = "ready"
    SLEEPING = "sleeping"
    DRAINING = "draining"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """Whether a model is ready and, if not, why; `GET /ready` shows it."""

    model: str
    phase: Phase
    progress: float | None = None
    """The progress within the phase from 0 to 1, if known."""
    detail: str | None = None
    """The current activity, as one sanitised line."""
    failure: Failure | None = None
    """The reason why the model could not be loaded. Its hint may name paths; it is for the operator
    and never shown to clients."""
    restarts: int = 0
    stalls: int = 0
    """The number of workers that were ended because they hung."""
    kind: str | None = None
    """The name of its kind in `engine.contract.kinds`; None until the checkpoint has been found."""
    joining: bool = False
    """Whether it is being loaded while the server runs, so that the server's readiness does not
    depend on it."""

    waking: bool = False
    """Whether it slept and is being loaded again."""
    pinned: bool = False
    """Whether it is never put to sleep."""
    num_wakes: int = 0
    wake_time_s: float = 0.0
    """The seconds that all its wakes took, until it served."""
    idle_s: float = 0.0
    """The seconds since it last did something, if it is awake."""
    sleep_after_s: float | None = None
    """The idle seconds after which it sleeps; None is never."""

    @property
    def is_asleep(self) -> bool:
        """Whether requests wait until it has woken."""
        return self.phase is Phase.SLEEPING or self.waking

    @property
    def news(self) -> str | None:
        """One line for clients: the reason of the failure, or the current activity."""
        return self.detail if self.failure is None else self.failure.message
