"""How full servers are, and how many of them that asks for."""

from typing import Any

from server.catalog import config_of
from server.served import SERVED
from server.state import AppState

METRIC = "fullness"


def fullness(state: AppState) -> float:
    """The number of requests at a server's fullest model, waiting ones included, for each that it
    runs at a time."""
    shares = [
        state.admission.num_in_flight(info.model)
        / served.places(state.settings, config_of(state.engine, info.model)).num_running
        for operation, served in SERVED.items()
        for info in state.engine.made_for(operation)
    ]
    return max(shares, default=0.0)


class FullnessPolicy:
    """An autoscaling policy of Ray Serve: as many servers as make each as full as wanted. Ray adds
    its delays and bounds.

    Args:
        target: how full servers should be; above 1 requests wait.
    """

    def __init__(self, target: float) -> None:
        self._target = target

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        by_replica = context.aggregated_metrics.get(METRIC, {})
        if not by_replica:  # none has said anything yet
            return context.target_num_replicas, {}
        mean = sum(by_replica.values()) / len(by_replica)
        return max(mean * context.current_num_replicas / self._target, 1.0), {}
