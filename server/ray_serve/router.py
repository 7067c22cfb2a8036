"""The request router of the deployment `Server`: our `Assignments`, asked by Ray."""

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from server.ray_serve.assignments import Assignments


class PrefixRouter(RequestRouter):  # type: ignore[misc]  # Ray's classes have no types here
    """Sends a request to the server that has made the ids in it, otherwise to the one where it
    costs least."""

    def initialize_state(self) -> None:
        self._assignments = Assignments()

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        self._assignments.set_servers(one.replica_id.unique_id for one in replicas)
        super().update_replicas(replicas)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        found = {one.replica_id.unique_id: one for one in candidate_replicas}
        if pending_request is None:
            return [list(found.values())]
        scope, body = pending_request.args
        request = pending_request.metadata.internal_request_id

        def forget(future: Any) -> None:
            if future.cancelled():  # the client has left before a server took it
                self._assignments.end(request)

        pending_request.future.add_done_callback(forget)
        return [
            [found[name]] for name in self._assignments.choose(request, scope["path"], body, found)
        ]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        request = pending_request.metadata.internal_request_id
        self._assignments.correct(request, replica_id.unique_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self._assignments.end(internal_request_id, is_answered=True)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._assignments.lose(replica_id.unique_id)
