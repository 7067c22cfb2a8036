"""Which server takes which request, without Ray: the one that has made the ids in it, otherwise the
one where it costs least."""

from collections.abc import Iterable

from engine.worker.replicas.router import Router, Running
from server.ray_serve.affinity import home_of, homes_in, job_of

_MAX_BLOCKS = 1 << 14
"""The most blocks of prompts that one server is assumed to hold while they are not in use: 4 MiB of
text."""


class Assignments:
    """The requests of one router. Servers have the names that Ray gives them.

    A request counts from the choice on, not from the answer: of several that come at once, each
    sees those before it.
    """

    def __init__(self) -> None:
        self._router = Router((), max_idle=_MAX_BLOCKS)
        self._servers: dict[str, str] = {}
        """By their names in ids."""
        self._running: dict[str, Running] = {}

    def set_servers(self, names: Iterable[str]) -> None:
        """Note which servers there are from now on."""
        self._servers = {home_of(name): name for name in names}
        self._router.set_replicas(self._servers.values())

    def choose(self, request: str, path: str, body: bytes, among: Iterable[str]) -> list[str]:
        """Rank servers for a request, which is taken to go to the first one."""
        self.end(request)  # it may come again, if the server chosen before did not take it
        found, job = list(among), job_of(body)
        homes = [self._servers.get(home) for home in homes_in(path, body)]
        names = [name for name in homes if name in found][:1] or self._router.ranked(job, found)
        if names:
            self._running[request] = self._router.begin(job, names[0])
        return names

    def correct(self, request: str, name: str) -> None:
        """Note which server has taken a request."""
        running = self._running.get(request)
        if running is not None and running.name != name and name in self._servers.values():
            self._router.end(running)
            self._running[request] = self._router.begin(running.job, name)

    def end(self, request: str, *, is_answered: bool = False) -> None:
        """Note that a request has ended, if it had begun."""
        running = self._running.pop(request, None)
        if running is None:
            return
        if is_answered:
            self._router.note_first_token(running, running.hold.num_known * running.job.block_size)
        self._router.end(running)

    def lose(self, name: str) -> None:
        """Note that a server has died."""
        if name in self._servers.values():
            self._router.lose(name)
