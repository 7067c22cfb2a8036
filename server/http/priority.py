"""The field `priority` of every kind of request: whether it has an effect, and what the OpenAPI
document says."""

from collections.abc import Sequence
from typing import Any

from engine.contract.settings import EngineConfig
from engine.errors import UnsupportedFeature
from server.http.schemas import variant


def acting_priority(asked: int | None, config: EngineConfig) -> int:
    """The priority of a request to a model of that configuration; null is 0.

    Raises:
        UnsupportedFeature: it is not 0, and requests are served in the order of arrival.
    """
    if asked and config.scheduling_policy != "priority":
        raise UnsupportedFeature(
            "priority other than 0 has no effect here; leave it out, or start the server with "
            "--scheduling-policy priority",
            param="priority",
        )
    return asked or 0


def describe_priority(properties: dict[str, Any], configs: Sequence[EngineConfig]) -> None:
    """Say in a body's schema that priority must be 0, if none of these models uses it."""
    heeded = any(config.scheduling_policy == "priority" for config in configs)
    if "priority" in properties and not heeded:
        variant(properties["priority"], "integer")["enum"] = [0]
