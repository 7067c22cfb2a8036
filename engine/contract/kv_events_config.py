"""Where a text model says which blocks its prefix cache holds, in the form of vLLM's
`--kv-events-config`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args, get_type_hints

from engine.contract.knob import check_bounds, knob
from engine.errors import InvalidParameter

_SETTING = "kv_events_config"


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
            InvalidParameter: there is no such field, or a value has another type or is out of
                bounds.
        """
        if given is None:
            return None
        kinds = get_type_hints(cls)
        for name, value in given.items():
            if name not in kinds:
                known = ", ".join(f.name for f in fields(cls))
                _refuse(f"there is no field {name}; its fields are {known}")
            _check_kind(name, value, kinds[name])
        config = cls(**given)
        try:
            check_bounds(config)
        except InvalidParameter as error:
            _refuse(error.message)
        is_on = config.enable_kv_cache_events and config.publisher == "zmq"
        return config if is_on else None


def _check_kind(name: str, value: Any, kind: Any) -> None:
    allowed = get_args(kind)
    if allowed and isinstance(allowed[0], str):
        if value not in allowed:
            _refuse(f"{name} must be one of {', '.join(allowed)}")
    elif type(value) not in (allowed or (kind,)):
        _refuse(f"{name} must not be {value!r}")


def _refuse(reason: str) -> None:
    raise InvalidParameter(f"{_SETTING}: {reason}", param=_SETTING)
