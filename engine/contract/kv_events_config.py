"""Where a text model says which blocks its prefix cache holds, in the form of vLLM's
`--kv-events-config`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from engine.contract.json_setting import read_object
from engine.contract.knob import knob


@dataclass(frozen=True, slots=True, kw_only=True)
class KvEventsConfig:
    """vLLM's fields with vLLM's defaults."""

    enable_kv_cache_events: bool = False
    publisher: Literal["zmq", "null"] = "zmq"
    endpoint: str = "tcp://*:5557"
    """Where to publish: bound if it has a `*` or `::`, or is `ipc://`, and connected to if not."""
    replay_endpoint: str | None = None
    """Where to answer those who have missed batches; None for nowhere."""
    buffer_steps: int = knob(10_000, ge=1)
    """How many batches are kept for them."""
    hwm: int = knob(100_000, ge=0)
    """The most batches that wait for a slow subscriber; 0 is no limit."""
    max_queue_size: int = knob(100_000, ge=1)
    """The most batches that wait to be published."""
    topic: str = ""

    @classmethod
    def read(cls, given: Mapping[str, Any] | None) -> Self | None:
        """Read the setting. None if nothing is to be published.

        Raises:
            InvalidParameter: as in `read_object`.
        """
        config = read_object(cls, given or {}, "kv_events_config")
        is_on = config.enable_kv_cache_events and config.publisher == "zmq"
        return config if is_on else None
