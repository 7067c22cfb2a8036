"""The request router of the deployment `Server`: our own `Router`, asked by Ray."""

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from engine.worker.replicas.router import Router, Running
from server.ray_serve.affinity import home_of, homes_in, job_of

_MAX_BLOCKS = 1 << 14
"""The most blocks of prompts that one server is believed to hold while nobody uses them: 4 MiB of
text."""


class PrefixRouter(RequestRouter):  # type: ignore[misc]  # Ray's classes have no types here
    """Sends a request to the server that has made the ids in it, otherwise to the one where it
    costs least."""

    def initialize_state(self) -> None:
        self._router = Router((), max_idle=_MAX_BLOCKS)
        self._ids: dict[str, ReplicaID] = {}
        self._homes: dict[str, ReplicaID] = {}
        self._jobs: dict[str, Running] = {}

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        self._ids = {one.replica_id.unique_id: one.replica_id for one in replicas}
        self._homes = {home_of(name): one for name, one in self._ids.items()}
        self._router.set_replicas(self._ids)
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
        for home in homes_in(scope["path"], body):
            if home in self._homes and self._homes[home].unique_id in found:
                return [[found[self._homes[home].unique_id]]]
        known = [name for name in found if name in self._ids]
        return [[found[name]] for name in self._router.ranked(job_of(body), known)]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        if replica_id.unique_id in self._ids:
            job = job_of(pending_request.args[1])
            running = self._router.begin(job, replica_id.unique_id)
            self._jobs[pending_request.metadata.internal_request_id] = running

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        running = self._jobs.pop(internal_request_id, None)
        if running is not None:
            self._router.note_first_token(running, running.hold.num_known * running.job.block_size)
            self._router.end(running)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        if replica_id.unique_id in self._ids:
            self._router.lose(replica_id.unique_id)
